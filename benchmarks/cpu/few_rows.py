"""What a decode step of few rows takes beside one of a single row, by features of the processor.

    python benchmarks/cpu/few_rows.py

Each row is a prompt of its own, and all are answered by one launch. Numbers of rows take turns in
every round, in random order; a ratio is of one round. The processor's features are set for a child
process, as numba reads them. Beside the time of a step stand what its weights take to be read and
what its products take to be multiplied, each at the rate that this process measures. Writes
benchmarks/results/few_rows.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.make_model import SHAPES, model_config, write_model  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "few_rows.json"
LARGEST_RATIOS = {2: 1.1, 3: 1.15, 4: 1.25, 8: 1.6, 16: 2.5}  # of a step of so many rows
FEATURES = {"avx2": "+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+popcnt,+lzcnt,+movbe,+cx16,+sse,+sse2,+sse3,"
                    "+ssse3,+sse4.1,+sse4.2",
            "all": None}  # what the processor has
LONG_PROMPTS = (128, 512)  # tokens
READ_BYTES = 512 * 2**20
SMALL_LAYERS = 4  # of the model whose tokens in float32 are compared


def environment(features: str | None) -> dict[str, str]:
    if features is None:
        return dict(os.environ)
    return {**os.environ, "NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": features}


def read_gb_s(workers: int) -> float:
    """The best of several rounds in which each worker sums up its share of a large array."""
    import numba

    @numba.njit(nogil=True, fastmath=True)
    def total(words: Any) -> Any:
        found = 0
        for k in range(len(words)):
            found += words[k]
        return found

    parts = np.array_split(np.ones(READ_BYTES // 8, np.int64), workers)
    total(parts[0][:8])
    taken = []
    with ThreadPoolExecutor(workers) as pool:
        for _ in range(8):
            begin = time.perf_counter()
            list(pool.map(total, parts))
            taken.append(time.perf_counter() - begin)
    return READ_BYTES / min(taken) / 1e9


def multiply_gflops() -> float:
    """What one core reaches in the largest block of products, its operands in the cache."""
    import numba

    from persistent_runtime.cpu.vectors.blocks import WHOLE_SHARE, dot_block
    from persistent_runtime.cpu.vectors.intrinsics import pointer_to
    from persistent_runtime.cpu.vectors.numerics import WEIGHT_ROWS

    length, x_rows, calls, weight, x = 1024, 6, 10_000, np.uint16(0), np.float32(0)

    @numba.njit
    def run(weights: Any, rows: Any, out: Any, calls: Any) -> None:
        for _ in range(calls):
            dot_block(pointer_to(weights, weight), pointer_to(rows, x), length, length,
                      pointer_to(out, x), WEIGHT_ROWS, 0, weights, WHOLE_SHARE, x_rows,
                      WEIGHT_ROWS, x_rows)

    arrays = (np.ones((2 * WEIGHT_ROWS, length), np.uint16),
              np.ones((x_rows, length), np.float32), np.ones((x_rows, WEIGHT_ROWS), np.float32))
    addresses = [array.ctypes.data for array in arrays]
    run(*addresses, 1)
    taken = []
    for _ in range(5):
        begin = time.perf_counter()
        run(*addresses, calls)
        taken.append(time.perf_counter() - begin)
    return 2 * WEIGHT_ROWS * x_rows * length * calls / min(taken) / 1e9


def prompts_of(decoder: Any, rows: int, tokens: int) -> list[list[int]]:
    rng = random.Random(0)
    return [[rng.randrange(decoder.config.vocab_size) for _ in range(tokens)]
            for _ in range(rows)]


def step_times(decoder: Any, options: argparse.Namespace) -> dict[int, list[float]]:
    """Of every number of rows, the median step of each round, in ms."""
    prompts = prompts_of(decoder, max(LARGEST_RATIOS), options.prompt_tokens)
    rounds: dict[int, list[float]] = {rows: [] for rows in (1, *LARGEST_RATIOS)}
    for number in range(-1, options.rounds):  # the first one warms up
        for rows in random.sample(list(rounds), len(rounds)):
            results = decoder.generate(prompts[:rows], max_new_tokens=options.new_tokens,
                                       ignore_eos=True)
            if number >= 0:
                rounds[rows].append(float(np.median(results[0].inter_token_ms)))
    return rounds


def prefill_times(decoder: Any, rounds: int) -> dict[str, float]:
    """Median ms to the first token, of long prompts."""
    taken: dict[int, list[float]] = {tokens: [] for tokens in LONG_PROMPTS}
    for number in range(-1, rounds):
        for tokens in LONG_PROMPTS:
            result = decoder.generate(prompts_of(decoder, 1, tokens)[0], max_new_tokens=1)
            if number >= 0:
                taken[tokens].append((result.token_times_ns[0] - result.start_ns) / 1e6)
    return {str(tokens): round(statistics.median(ms), 2) for tokens, ms in taken.items()}


def compare_tokens(decoder: Any, options: argparse.Namespace) -> dict[str, int]:
    """Tokens of every batch beside those of each prompt alone."""
    prompts = prompts_of(decoder, max(LARGEST_RATIOS), options.prompt_tokens)
    arguments = {"max_new_tokens": options.new_tokens, "ignore_eos": True}
    alone = [decoder.generate(prompt, **arguments).output_ids for prompt in prompts]
    pairs = [(a, b) for rows in LARGEST_RATIOS for expected, result in
             zip(alone, decoder.generate(prompts[:rows], **arguments), strict=False)
             for a, b in zip(expected, result.output_ids, strict=True)]
    return {"tokens_compared": len(pairs), "tokens_equal": sum(a == b for a, b in pairs)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from event_tensor import compile_decode_loop
    from frontend.report.machine import Contention, cpu_features

    most = max(LARGEST_RATIOS)
    contention = Contention()
    decoder = compile_decode_loop(options.child, workers=options.workers, max_requests=most,
                                  max_context=max(LONG_PROMPTS) + 64)
    weights = decoder.weight_bytes
    rounds = step_times(decoder, options)
    ratios = {rows: [few / one for few, one in zip(taken, rounds[1], strict=True)]
              for rows, taken in rounds.items() if rows > 1}
    medians = {rows: round(statistics.median(taken), 3) for rows, taken in ratios.items()}
    gb_s, gflops = read_gb_s(decoder.num_workers), multiply_gflops()
    small = compile_decode_loop(options.small, workers=options.workers, max_requests=most,
                                max_context=options.prompt_tokens + options.new_tokens)
    return {
        "features": cpu_features(), "workers": decoder.num_workers,
        "step_ms": {rows: round(statistics.median(ms), 3) for rows, ms in rounds.items()},
        "ratios": medians, "largest_ratios": LARGEST_RATIOS,
        "met": {rows: medians[rows] <= most for rows, most in LARGEST_RATIOS.items()},
        "round_ratios": {rows: [round(r, 3) for r in taken] for rows, taken in ratios.items()},
        "read_gb_s": round(gb_s, 1), "core_gflops": round(gflops, 1),
        "read_ms": round(weights / gb_s / 1e6, 3),
        "multiply_ms": {rows: round(weights * rows / gflops / decoder.num_workers / 1e6, 3)
                        for rows in rounds},
        "prefill_ms": prefill_times(decoder, 5),
        "bfloat16": compare_tokens(decoder, options), "float32": compare_tokens(small, options),
        "busy_with_others": contention.share()}


def run_child(features: str | None, models: list[Path], arguments: list[str]) -> dict[str, Any]:
    of_models = ["--child", str(models[0]), "--small", str(models[1])]
    done = subprocess.run(
        [sys.executable, __file__, *arguments, *of_models],
        env=environment(features), stdout=subprocess.PIPE, text=True, check=True)
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen3-0.6b", choices=SHAPES)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--features", nargs="+", default=list(FEATURES), choices=FEATURES)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--child", help="measure this model in this process")
    parser.add_argument("--small", help="the model in float32")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options)))
        return
    from frontend.report.machine import provenance

    results = {}  # of features that are not measured now, what was there
    if options.output.exists() and set(options.features) != set(FEATURES):
        results = json.loads(options.output.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        small_config = model_config(options.shape, num_hidden_layers=SMALL_LAYERS)
        models = [write_model(model_config(options.shape), Path(folder) / "model"),
                  write_model(small_config, Path(folder) / "small", dtype="float32")]
        for name in options.features:
            results[name] = run_child(FEATURES[name], models, sys.argv[1:])
            results |= {"shape": options.shape, **provenance()}
            print(json.dumps({name: results[name]}, indent=1), flush=True)
            # after each: what is measured stays when a later one fails
            options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
