"""A laptop's life: processes that are stopped amid prefill and amid decode, and go on.

    python benchmarks/cpu/suspended.py MODEL

MODEL: a directory. Each of the processes answers one prompt, is stopped (SIGSTOP) at a random
moment of its phase for longer than a launch waits for one event, and continued. Its tokens must be
those of a run that nobody stopped, and the gap must lie in the phase that was meant. Writes
benchmarks/results/suspended.json; ends with 1 where anything else comes out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from frontend.report.machine import provenance  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "suspended.json"
PROMPT_TOKENS, NEW_TOKENS = 500, 150
PHASES = ("prefill", "decode")
ATTEMPTS = 5  # a process may be faster than the moment that was drawn


def child(model: str) -> None:
    from frontend.compile import compile_decode_loop

    decoder = compile_decode_loop(model, max_context=PROMPT_TOKENS + NEW_TOKENS)
    rng = random.Random(0)
    prompt = [rng.randrange(decoder.config.vocab_size) for _ in range(PROMPT_TOKENS)]
    decoder.generate(prompt, max_new_tokens=2, ignore_eos=True)
    print(json.dumps("ready"), flush=True)
    sys.stdin.readline()
    result = decoder.generate(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True, seed=1,
                              temperature=0.8)
    times_ns = [result.start_ns, *result.token_times_ns]
    gaps_s = [(b - a) / 1e9 for a, b in zip(times_ns, times_ns[1:], strict=False)]
    print(json.dumps({"output_ids": result.output_ids, "gaps_s": gaps_s}), flush=True)


class Run:
    """A process that has begun to answer."""

    def __init__(self, model: str) -> None:
        self._process = subprocess.Popen([sys.executable, __file__, model, "--child"],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def stop(self) -> None:
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = self._answer()
        self._process.wait()
        return found


def phase_of_gap(gaps_s: list[float], stopped_s: float) -> str:
    longest = max(range(len(gaps_s)), key=gaps_s.__getitem__)
    if gaps_s[longest] < stopped_s:
        return "none"
    return "decode" if longest else "prefill"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--times", type=int, default=10, help="of each phase")
    parser.add_argument("--stopped-s", type=float, default=40.0)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.child:
        child(options.model)
        return 0
    plain = Run(options.model).result()
    ttft_s, decode_s = plain["gaps_s"][0], sum(plain["gaps_s"][1:])
    rng = random.Random(0)
    done = {phase: {"right": 0, "wrong": 0, "missed": 0} for phase in PHASES}
    for _ in range(ATTEMPTS):
        stopped = []
        for phase in PHASES:
            for _ in range(options.times - done[phase]["right"] - done[phase]["wrong"]):
                run = Run(options.model)
                share = rng.uniform(0.1, 0.8)
                time.sleep(ttft_s * share if phase == "prefill" else ttft_s + decode_s * share)
                run.stop()
                stopped.append((phase, run, time.monotonic()))
        for phase, run, since_s in stopped:
            time.sleep(max(since_s + options.stopped_s - time.monotonic(), 0))
            run.go_on()
            result = run.result()
            if phase_of_gap(result["gaps_s"], options.stopped_s) != phase:
                outcome = "missed"
            else:
                outcome = "right" if result["output_ids"] == plain["output_ids"] else "wrong"
            done[phase][outcome] += 1
        print(done, flush=True)
    is_right = all(of["right"] == options.times and not of["wrong"] for of in done.values())
    result = {"stopped_s": options.stopped_s, "prompt_tokens": PROMPT_TOKENS,
              "new_tokens": NEW_TOKENS, "phases": done, **provenance()}
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(not is_right)


if __name__ == "__main__":
    raise SystemExit(main())
