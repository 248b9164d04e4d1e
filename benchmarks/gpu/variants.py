"""Where a decode step's time goes on this GPU, and what other tile sizes make of it.

    python benchmarks/gpu/variants.py --shape llama-3.2-1b --variant a tile_columns=1 \
        --variant b gated.depth=512 head.depth=512

A variant changes fields of scheduling's Target or of the GPU's TileTarget, or of a block in it.
Every variant is timed in every round, in random order; then one traced run says what each device
function took.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.decode import NEW_TOKENS, random_model  # noqa: E402
from benchmarks.shapes import PUBLISHED  # noqa: E402
from frontend.compile import compile_decode_loop  # noqa: E402
from frontend.decode.decoder import Decoder  # noqa: E402
from frontend.report.machine import gpu_name, provenance  # noqa: E402
from frontend.report.random_prompt import random_prompt  # noqa: E402
from persistent_runtime.gpu import backend, target  # noqa: E402
from persistent_runtime.trace.record import SegmentTrace  # noqa: E402

TRACED_STEPS = 16
RESULT = Path(__file__).parents[1] / "results" / "gpu_variants.json"


def changed_tiles(tiles: target.TileTarget, settings: dict[str, int]) -> target.TileTarget:
    """With these values for fields: of it (`kv_block`), or of one of its blocks (`gated.depth`)."""
    for name, value in settings.items():
        block, _, field = name.rpartition(".")
        new = replace(getattr(tiles, block), **{field: value}) if block else value
        tiles = replace(tiles, **{block or name: new})
    return tiles


@contextmanager
def changed(settings: dict[str, int]) -> Iterator[None]:
    """Targets with these fields changed."""
    tile_fields = {f.name for f in fields(target.TileTarget)}
    tiles = {k: v for k, v in settings.items() if k.split(".")[0] in tile_fields}
    machine = {k: v for k, v in settings.items() if k not in tiles}
    entries = {name: changed_tiles(entry, tiles) for name, entry in target.TILE_TARGETS.items()
               if entry.bulk_copies or not tiles.get("ring_pieces")}  # others have no ring
    with patch.dict(target.TILE_TARGETS, entries), \
            patch.object(backend, "H200", replace(backend.H200, **machine)):
        yield


def summary(trace: SegmentTrace) -> dict[str, Any]:
    """Of the traced steps after the first: microseconds per step. Work and wait are means over
    workers; span is from a function's first start to its last end, summed over its calls."""
    table, steps = trace.table, slice(1, None)
    workers = len(trace.segment.encoded.schedule.orders)
    run = (trace.end_us - trace.run_us)[steps]
    wait = (trace.run_us - trace.wait_us)[steps]
    functions: dict[str, Any] = {}
    for call in table.graph.calls:
        own = slice(int(table.call_begin[call.index]), int(table.call_begin[call.index + 1]))
        entry = functions.setdefault(call.function.name, dict.fromkeys(
            ("tasks", "work_us", "wait_us", "span_us", "median_task_us", "gb_s"), 0.0))
        span = (trace.end_us[steps, own].max(axis=1) - trace.run_us[steps, own].min(axis=1)).mean()
        entry["tasks"] += own.stop - own.start
        entry["work_us"] += run[:, own].sum(axis=1).mean() / workers
        entry["wait_us"] += wait[:, own].sum(axis=1).mean() / workers
        entry["span_us"] += span
        entry["median_task_us"] = float(np.median(run[:, own]))
        entry["gb_s"] += table.bytes[own].sum() / 1e3
    for entry in functions.values():
        entry["gb_s"] = entry["gb_s"] / entry["span_us"] if entry["span_us"] else 0.0
    begins = trace.wait_us[steps].min(axis=1)
    return {"step_us": float(np.diff(begins).mean()),
            "work_us": float(run.sum(axis=1).mean() / workers),
            "wait_us": float(wait.sum(axis=1).mean() / workers),
            "functions": {name: {k: round(float(v), 2) for k, v in entry.items()}
                          for name, entry in functions.items()}}


def traced(decoder: Decoder, prompt: list[int]) -> dict[str, Any]:
    result = decoder.generate(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True,
                              trace_steps=TRACED_STEPS)
    return summary(result.trace[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="llama-3.2-1b", choices=list(PUBLISHED))
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--variant", nargs="+", action="append", default=[])
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    model = random_model(options.shape, "cuda")
    decoders: dict[str, Decoder] = {}
    settings: dict[str, dict[str, int]] = {}
    for name, *changes in options.variant or [["default"]]:
        settings[name] = {k: int(v) for k, v in (change.split("=") for change in changes)}
        with changed(settings[name]):
            decoders[name] = compile_decode_loop(model, backend="cuda", max_requests=1,
                                                 max_context=options.context + NEW_TOKENS)
        found = decoders[name].kernel.kernel.resources()
        print(name, settings[name], found, flush=True)
    times: dict[str, list[float]] = {name: [] for name in decoders}
    outputs: dict[str, list[int]] = {}
    order = random.Random(0)
    prompt = random_prompt(next(iter(decoders.values())), options.context, seed=options.context)
    for _ in range(options.rounds):
        for name in order.sample(list(decoders), len(decoders)):
            result = decoders[name].generate(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True)
            times[name].append(float(result.inter_token_ms.mean()))
            outputs[name] = result.output_ids
    record: dict[str, Any] = {"shape": options.shape, "context": options.context,
                              "gpu": gpu_name(), **provenance(), "variants": {}}
    first = next(iter(outputs.values()))
    for name, decoder in decoders.items():
        found = traced(decoder, prompt)
        same = sum(a == b for a, b in zip(outputs[name], first, strict=True))
        record["variants"][name] = {
            "settings": settings[name], "ms_per_step": round(statistics.median(times[name]), 5),
            "fastest_ms": round(min(times[name]), 5), "tokens_as_first": same,
            "kernel": decoder.kernel.kernel.resources(), "trace": found}
        print(f"\n{name}: {statistics.median(times[name]):.4f} ms (best {min(times[name]):.4f}), "
              f"traced {found['step_us'] / 1e3:.4f} ms, work {found['work_us']:.0f} us, wait "
              f"{found['wait_us']:.0f} us, {same} tokens as the first")
        for function, values in found["functions"].items():
            print(f"  {function:20s}" + "".join(f" {k} {v:9.2f}" for k, v in values.items()))
        options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
