"""How fast this GPU reads and copies its memory: the floor under a decode step is bytes over this.

    python benchmarks/gpu/bandwidth.py
"""

from __future__ import annotations

import json
import sys

import torch
import triton
import triton.language as tl

BUFFER_BYTES = 4 * 2**30  # far larger than any cache
BLOCK = 8192  # int32 words that a program reads
PASSES = 5  # per measurement


@triton.jit
def sum_blocks(words, sums, BLOCK: tl.constexpr):  # noqa: ANN001, ANN201
    """sums[b] = Σ words[b * BLOCK:(b + 1) * BLOCK]; the sum keeps the loads from being dropped."""
    block = tl.program_id(0).to(tl.int64)
    values = tl.load(words + block * BLOCK + tl.arange(0, BLOCK))
    tl.store(sums + block, tl.sum(values, axis=0))


class Bandwidth:
    """Reads and copies 4 GiB. The best of all passes counts: what the memory can do."""

    def __init__(self) -> None:
        # random: a memory may be faster on zeros
        self._source = torch.randint(-100, 100, (BUFFER_BYTES // 4,), dtype=torch.int32,
                                     device="cuda")
        self._target = torch.empty_like(self._source)
        self._sums = torch.zeros(len(self._source) // BLOCK, dtype=torch.int32, device="cuda")
        self._reads: list[float] = []
        self._copies: list[float] = []
        self._read()
        if int(self._sums.sum()) != int(self._source.sum()):
            raise RuntimeError("the read bandwidth kernel did not read what is there")
        self.measure()

    def _read(self) -> None:
        sum_blocks[(len(self._sums),)](self._source, self._sums, BLOCK, num_warps=8)

    def measure(self) -> None:
        """A few more passes of both."""
        for _ in range(PASSES):
            self._reads.append(BUFFER_BYTES / self._seconds(self._read) / 1e9)
            self._copies.append(2 * BUFFER_BYTES / self._seconds(
                lambda: self._target.copy_(self._source)) / 1e9)

    @staticmethod
    def _seconds(work) -> float:  # noqa: ANN001
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    @property
    def read_gb_s(self) -> float:
        return max(self._reads)

    @property
    def copy_gb_s(self) -> float:
        """Bytes read and bytes written together."""
        return max(self._copies)

    def record(self) -> dict[str, float]:
        return {"read": round(self.read_gb_s, 1), "copy": round(self.copy_gb_s, 1),
                "read_median": round(sorted(self._reads)[len(self._reads) // 2], 1),
                "copy_median": round(sorted(self._copies)[len(self._copies) // 2], 1)}


def main() -> int:
    if not torch.cuda.is_available():
        print("bandwidth.py needs a GPU that torch can see, and there is none.",
              file=sys.stderr)
        return 2
    print(json.dumps(Bandwidth().record()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
