"""How fast the CPU bodies run beside a bare read of the same bytes; prints one JSON object.

Configurations are measured in random order, many rounds, over weights far larger than any cache:
on a shared machine the same code measured first and last can differ by a factor of two.

    python benchmarks/cpu/tiles.py --rounds 15 --threads 2 --dtype bfloat16
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import llvmlite.binding
import numba as nb
import numpy as np

from persistent_runtime.cpu.compile.registry import compile_body, zero_of
from persistent_runtime.cpu.vectors.emit import CPU_FEATURES, LANES
from persistent_runtime.cpu.vectors.intrinsics import call_device_function
from persistent_runtime.formats import DTYPES
from persistent_runtime.functions import dense as df
from persistent_runtime.rows import layout
from persistent_runtime.rows.single_call import pack_arguments

TOTAL_BYTES = 640 * 2**20  # of weights each measurement passes over
GEMV_SHAPES = ((3072, 1024), (1024, 3072), (151936, 1024))  # out_features, in_features
GEMM_ROWS = (8, 32, 64, 256)


@nb.njit(nogil=True)
def run_tiles(function, records, tiles, step, scratch):
    """Runs every tile of `tiles` [n, MAX_TILE_RANK] for every argument record."""
    for r in range(len(records)):
        for t in range(len(tiles)):
            call_device_function(function, records[r], tiles[t].ctypes.data, step.ctypes.data,
                                 scratch.ctypes.data)


@nb.njit(nogil=True, fastmath=True)
def read_bytes(words):
    total = 0
    for k in range(len(words)):
        total += words[k]
    return total


@dataclass
class Case:
    """One device function over enough copies of its weights, split between threads by columns."""

    name: str
    function: int
    records: list[np.ndarray]
    shares: list[np.ndarray]  # tiles of each thread
    scratch: list[np.ndarray]
    bytes: int
    flops: int
    kept: object

    def run(self, pool: ThreadPoolExecutor) -> float:
        step = np.zeros(layout.STEP_WORDS, np.int64)
        addresses = np.array([record.ctypes.data for record in self.records])
        begin = time.perf_counter()
        list(pool.map(lambda k: run_tiles(self.function, addresses, self.shares[k], step,
                                          self.scratch[k]), range(len(self.shares))))
        return time.perf_counter() - begin


def make_case(shape: tuple[int, int], rows: int, dtype: str, threads: int, tile_n: int,
              pool_words: np.ndarray, residual: bool) -> Case:
    out_features, in_features = shape
    zero = zero_of(dtype)
    weights = pool_words.view(zero.dtype)
    size = out_features * in_features
    copies = len(weights) // size
    declaration = df.linear_residual if residual else df.norm_linear
    tile_m = rows
    x = np.random.default_rng(0).standard_normal((rows, in_features)).astype(np.float32)
    out = np.zeros((rows, out_features), np.float32)
    norm = weights[:in_features].copy()
    records = []
    for copy in range(copies):
        weight = weights[copy * size:(copy + 1) * size].reshape(shape)
        values = {"x": x, "weight": weight, "tile_m": tile_m, "tile_n": tile_n,
                  "in_features": in_features, "row_bytes": zero.itemsize * in_features}
        values |= ({"residual": out} if residual else
                   {"out": out, "norm_weight": norm, "eps": 1e-6})
        records.append(pack_arguments(declaration, values))
    columns = -(-out_features // tile_n)
    tiles = np.zeros((columns, layout.MAX_TILE_RANK), np.int32)
    tiles[:, 1] = np.arange(columns)
    scratch_bytes = declaration.scratch_bytes.evaluate(
        {"tile_m": tile_m, "in_features": in_features})
    return Case(
        f"{declaration.name}[{rows} rows, N={out_features}, K={in_features}]",
        compile_body(declaration, dtype).address, records, np.array_split(tiles, threads),
        [np.empty(scratch_bytes // 4, np.float32) for _ in range(threads)],
        copies * size * zero.itemsize, 2 * copies * size * rows, (x, out, norm))


def make_attention_case(context: int, group_heads: int, dtype: str, threads: int,
                        pool_words: np.ndarray) -> Case:
    """One row of decode over a long context, as many layers of caches as the pool holds."""
    kv_heads, head_dim, zero = 8, 128, zero_of(dtype)
    heads = kv_heads * group_heads
    values = pool_words.view(zero.dtype)
    shape = (1, kv_heads, context, head_dim)
    size = kv_heads * context * head_dim
    layers = len(values) // (2 * size)
    q = np.random.default_rng(0).standard_normal((1, heads * head_dim)).astype(np.float32)
    partial = np.zeros((1, 1, heads * head_dim), np.float32)
    stats = np.zeros((1, 1, heads * 2), np.float32)
    request, position = np.zeros(1, np.int32), np.full(1, context - 1, np.int32)
    cos, sin = (np.ones((context, head_dim // 2), np.float32) for _ in range(2))
    records = []
    for layer in range(layers):
        k, v = (values[(2 * layer + part) * size:][:size].reshape(shape) for part in (0, 1))
        records.append(pack_arguments(df.attention, {
            "q": q, "k": None, "v": None, "q_norm": None, "k_norm": None, "cos": cos, "sin": sin,
            "k_cache": k, "v_cache": v, "row_request": request, "row_position": position,
            "eps": 1e-6, "partial": partial, "stats": stats, "tile_m": 1,
            "head_dim": head_dim, "group_heads": group_heads,
            "group_width": group_heads * head_dim, "kv_splits": 1, "scale": head_dim**-0.5}))
    tiles = np.zeros((kv_heads, layout.MAX_TILE_RANK), np.int32)
    tiles[:, 1] = np.arange(kv_heads)
    scratch_bytes = df.attention.scratch_bytes.evaluate(
        {"tile_m": 1, "group_heads": group_heads, "head_dim": head_dim,
         "group_width": group_heads * head_dim})
    return Case(
        f"attention[1 rows, context={context}, {heads} heads on {kv_heads}]",
        compile_body(df.attention, dtype).address, records, np.array_split(tiles, threads),
        [np.empty(scratch_bytes // 4, np.float32) for _ in range(threads)],
        layers * 2 * size * zero.itemsize, layers * 4 * size * group_heads,
        (q, partial, stats, request, position, cos, sin))


def time_read(pool: ThreadPoolExecutor, words: np.ndarray, threads: int) -> float:
    begin = time.perf_counter()
    list(pool.map(read_bytes, np.array_split(words, threads)))
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--tile-n", type=int, default=64)
    parser.add_argument("--filter", default="", help="only cases whose name contains this")
    options = parser.parse_args()

    # small finite numbers in every storage type: exponents of about one, random mantissas
    zero = zero_of(options.dtype)
    words = np.random.default_rng(1).normal(0, 0.02, TOTAL_BYTES // 8).astype(np.float32)
    if zero.itemsize == 2:
        halves = (words.view(np.uint32) >> 16).astype(np.uint16) if options.dtype == "bfloat16" \
            else words.astype(np.float16).view(np.int16)
        words = np.concatenate([halves, halves])
    words = np.concatenate([words] * (TOTAL_BYTES // words.nbytes)).view(np.int64)

    def case(shape: tuple[int, int], rows: int, residual: bool) -> Case:
        part = words if rows == 1 else words[:max(len(words) // rows, shape[0] * shape[1] // 2)]
        return make_case(shape, rows, options.dtype, options.threads, options.tile_n, part,
                         residual)

    cases = [case(shape, 1, shape[0] < shape[1]) for shape in GEMV_SHAPES]
    cases += [case(shape, rows, shape[0] < shape[1])
              for rows in GEMM_ROWS for shape in GEMV_SHAPES[:2]]
    cases += [make_attention_case(4096, group_heads, options.dtype, options.threads, words)
              for group_heads in (1, 2, 4, 7)]
    cases = [c for c in cases if options.filter in c.name]
    seconds: dict[str, list[float]] = {c.name: [] for c in cases} | {"read": []}
    with ThreadPoolExecutor(options.threads) as pool:
        time_read(pool, words, options.threads)
        for c in cases:
            c.run(pool)
        for _ in range(options.rounds):
            for c in random.sample([*cases, None], len(cases) + 1):
                name, took = ("read", time_read(pool, words, options.threads)) if c is None \
                    else (c.name, c.run(pool))
                seconds[name].append(took)

    read = [words.nbytes / s / 1e9 for s in seconds["read"]]
    results = {}
    for c in cases:
        rates = [c.bytes / s / 1e9 for s in seconds[c.name]]
        gflops = [c.flops / s / 1e9 / options.threads for s in seconds[c.name]]
        results[c.name] = {
            "gb_s": round(statistics.median(rates), 2), "gb_s_max": round(max(rates), 2),
            "fraction_of_read": round(statistics.median(rates) / statistics.median(read), 3),
            "gflop_s_per_core": round(statistics.median(gflops), 1),
            "gflop_s_per_core_max": round(max(gflops), 1)}
    print(json.dumps({
        "cpu": llvmlite.binding.get_host_cpu_name(), "machine": platform.machine(),
        "avx512": "+avx512f" in CPU_FEATURES, "lanes": LANES, "threads": options.threads,
        "dtype": options.dtype, "tile_n": options.tile_n, "rounds": options.rounds,
        "read_gb_s": round(statistics.median(read), 2), "read_gb_s_max": round(max(read), 2),
        "cases": results}, indent=1))


if __name__ == "__main__":
    main()
