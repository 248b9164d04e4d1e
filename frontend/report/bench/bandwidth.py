"""How fast this machine reads memory: the floor under a decode step is its bytes over this."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numba as nb
import numpy as np

BUFFER_BYTES = 640 * 2**20  # far larger than any cache
CUDA_BUFFER_BYTES = 4 * 2**30
PASSES = 3  # per measurement; the best counts, for the question is what the memory can do


@nb.njit(nogil=True)
def sum_words(words: Any) -> Any:
    """words: [n] int64; the sum keeps the loads from being optimised away."""
    total = 0
    for k in range(len(words)):
        total += words[k]
    return total


class BandwidthReader(Protocol):
    def measure_gb_s(self) -> float: ...


def bandwidth_reader(backend: str, workers: int) -> BandwidthReader:
    """Of the memory that this backend's kernels read."""
    return CudaReadBandwidth() if backend == "cuda" else ReadBandwidth(workers)


class ReadBandwidth:
    """A buffer that `threads` threads stream through, each its own part."""

    def __init__(self, threads: int) -> None:
        # filled: untouched pages would all be the one zero page of the system, in the cache
        self._words = np.full(BUFFER_BYTES // 8, 1, np.int64)
        self._parts = np.array_split(self._words, threads)
        self._threads = threads
        sum_words(self._words[:8])

    def measure_gb_s(self) -> float:
        """GB/s, the best of a few passes. The threads end before this returns."""
        best = float("inf")
        with ThreadPoolExecutor(self._threads) as pool:
            for _ in range(PASSES):
                begin = time.perf_counter()
                list(pool.map(sum_words, self._parts))
                best = min(best, time.perf_counter() - begin)
        return self._words.nbytes / best / 1e9


class CudaReadBandwidth:
    """A buffer that a GPU adds up."""

    def __init__(self) -> None:
        import torch

        self._words = torch.ones(CUDA_BUFFER_BYTES // 4, device="cuda")
        self._words.sum()

    def measure_gb_s(self) -> float:
        """GB/s, the best of a few passes."""
        import torch

        best = float("inf")
        for _ in range(PASSES):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            self._words.sum()
            end.record()
            end.synchronize()
            best = min(best, begin.elapsed_time(end) / 1e3)
        return self._words.nbytes / best / 1e9
