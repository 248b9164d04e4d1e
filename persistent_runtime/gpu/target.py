"""Block sizes as data: what one SM's registers and shared memory hold of a tile."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TileTarget:
    """Sizes that the bodies' configurations are made of. All are powers of two but the stages.

    num_warps: of the whole kernel. row_elements: weights that one iteration of the one-row path
    holds, over all matrices it reads; row_stages: iterations in flight. tensor_*: the same for the
    tensor-core path. kv_block: positions of the KV cache per iteration, query_rows: query vectors
    that share them, kv_stages: iterations in flight.
    """

    num_warps: int
    row_elements: int
    row_stages: int
    tensor_rows: int
    tensor_columns: int
    tensor_depth: int
    tensor_stages: int
    kv_block: int
    query_rows: int
    kv_stages: int


TILE_TARGETS = {
    # 8192 bf16 weights are 16 KB; four iterations in flight hide the latency of memory
    "generic": TileTarget(8, 4096, 6, 64, 64, 64, 3, 64, 16, 2),
}
