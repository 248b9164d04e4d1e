"""Continuous generation of many requests: memory must not grow and TPOT must not drift.

    python benchmarks/cpu/soak.py --minutes 10

Prompts, batches, conversations, early ends and sampling in turn. Writes
benchmarks/results/soak.json; exits with 1 where a limit is passed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from event_tensor import compile_decode_loop  # noqa: E402
from frontend.decode.decoder import Decoder  # noqa: E402
from frontend.report.machine import Contention, provenance  # noqa: E402

RESULT = Path(__file__).parents[1] / "results" / "soak.json"
LARGEST_GROWTH_MB = 4.0  # from the end of the first fifth to the end
# Of the last fifth's TPOT from the second fifth's, both as the fastest tenth of their requests has
# it: on a shared machine whole minutes are slow; what slows a program down, slows its fastest too.
# Getting faster is the machine's doing.
LARGEST_DRIFT = 0.10
FASTEST_PERCENT = 10
WARMUP_SHARE = 0.2
SAMPLES = 200  # lines of the record, whatever the time


def rss_mb() -> float:
    """The memory this process holds now, mapped weights included; Linux only."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def requests(decoder: Decoder, seed: int) -> Iterator[float | None]:
    """Runs one request after the other, for ever; yields the median TPOT in milliseconds of the
    kind that is measured (a single greedy request of one length), else None."""
    rng = random.Random(seed)

    def prompt() -> list[int]:
        return [rng.randrange(decoder.config.vocab_size) for _ in range(rng.randint(1, 200))]

    conversation = decoder.chat() if decoder.tokenizer else None
    fixed = prompt()
    while True:
        result = decoder.generate(fixed, max_new_tokens=64, ignore_eos=True, temperature=0.0)
        yield float(np.median(result.inter_token_ms))
        decoder.generate(prompt(), max_new_tokens=rng.randint(1, 64), temperature=0.9, top_p=0.9)
        decoder.generate([prompt() for _ in range(rng.randint(2, decoder.max_requests))],
                         max_new_tokens=8)
        stream = decoder.stream(prompt(), max_new_tokens=200, ignore_eos=True)
        next(stream)
        stream.close()
        if conversation is not None:
            for text in ("kernel", "hacker"):
                for _ in conversation.send(text, max_new_tokens=16):
                    pass
            conversation.reset()
        yield None


def soak(decoder: Decoder, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Runs for `seconds`; what was seen over time, and the verdict on memory and TPOT."""
    begin = time.monotonic()
    times: list[float] = []  # seconds since the beginning, of each measured request
    tpot_ms: list[float] = []
    memory_mb: list[float] = []
    contention = Contention()
    for tpot in requests(decoder, seed):
        elapsed = time.monotonic() - begin
        if tpot is not None:
            gc.collect()  # what is left is held by something
            times.append(elapsed)
            tpot_ms.append(tpot)
            memory_mb.append(rss_mb())
        if elapsed > seconds and len(times) >= 2 / WARMUP_SHARE:
            break
    first = int(len(times) * WARMUP_SHARE)
    windows = {"early": tpot_ms[first:2 * first], "late": tpot_ms[-first:]}
    early, late = (float(np.percentile(w, FASTEST_PERCENT)) for w in windows.values())
    growth = max(memory_mb[-first:]) - max(memory_mb[:first])
    step = -(-len(times) // SAMPLES)
    return {
        "seconds": round(times[-1], 1), "rounds": len(times), "launches": decoder.kernel.launches,
        "compilations": decoder.compilations, "memory_growth_mb": round(growth, 2),
        "largest_memory_growth_mb": LARGEST_GROWTH_MB, "memory_grew": growth > LARGEST_GROWTH_MB,
        "tpot_ms": {name: {f"p{p}": round(float(np.percentile(w, p)), 4)
                           for p in (FASTEST_PERCENT, 50, 90)} for name, w in windows.items()},
        "tpot_drift": round(late / early - 1, 4), "largest_tpot_drift": LARGEST_DRIFT,
        "tpot_drifted": late / early - 1 > LARGEST_DRIFT,
        "busy_with_others": contention.share(),
        "over_time": [{"seconds": round(times[k], 1), "rss_mb": round(memory_mb[k], 2),
                       "tpot_ms": round(tpot_ms[k], 4)} for k in range(0, len(times), step)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    decoder = compile_decode_loop(options.model, workers=options.workers)
    result = {"model": options.model, "workers": decoder.num_workers,
              **soak(decoder, options.minutes * 60), **provenance()}
    text = json.dumps(result, indent=1)
    print(text)
    options.output.write_text(text + "\n", encoding="utf-8")
    if result["memory_grew"] or result["tpot_drifted"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
