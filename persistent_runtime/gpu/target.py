"""Block sizes as data: what one SM's registers and shared memory hold of a tile."""

from __future__ import annotations

from dataclasses import dataclass

from event_tensor.errors import UserError

# slots of the ring: two rounds of two pieces, and as many as have barriers (ring.py)
FEWEST_PIECES, MOST_PIECES = 4, 15


@dataclass(frozen=True, slots=True)
class RowBlock:
    """What the one-row path of a matrix product holds. Counts of elements are powers of two.

    elements: weights of one iteration, over all matrices it reads; depth: of a row at most, because
    every warp holds that much of the activations; bytes_in_flight: of weights, while an iteration
    computes.
    """

    elements: int
    depth: int
    bytes_in_flight: int = 48 * 1024


@dataclass(frozen=True, slots=True)
class TileTarget:
    """Sizes that the bodies' configurations are made of. Counts of elements are powers of two.

    num_warps: of the whole kernel. projection, residual, gated, head: blocks of the one-row path,
    by what a product is for: queries, keys, values and routers; what is added to the residual; a
    gate and what it lets through; logits. tensor_*: a block of the tensor-core path, and its
    iterations in flight. kv_block: positions of the KV cache per iteration, query_rows: query
    vectors that share them, kv_stages: iterations in flight. ring_pieces: slots of the ring in
    shared memory (ring.py); 0 for none.
    """

    num_warps: int
    projection: RowBlock
    residual: RowBlock
    gated: RowBlock
    head: RowBlock
    tensor_rows: int
    tensor_columns: int
    tensor_depth: int
    tensor_stages: int
    kv_block: int
    query_rows: int
    kv_stages: int
    bulk_copies: bool  # whether one instruction can bring a piece of a weight, as the ring needs
    ring_pieces: int = 0

    def __post_init__(self) -> None:
        if self.ring_pieces and not (FEWEST_PIECES <= self.ring_pieces <= MOST_PIECES
                                     and self.num_warps == 8 and self.bulk_copies):
            raise UserError(f"ring_pieces is {self.ring_pieces}; give 0, or {FEWEST_PIECES} to "
                            f"{MOST_PIECES} with 8 warps on a GPU of capability 9.0 or later")


# 132 SMs need about 40 KB each in flight to cover 1 us of latency at 4.8 TB/s. Larger blocks of
# the tensor-core path spill registers. Blocks of the one-row path: the fastest of each on an H200
# (benchmarks/results/gpu_variants_*.json, Llama-3.2-1B).
PROJECTION, RESIDUAL = RowBlock(16384, 512), RowBlock(8192, 512)
GATED = HEAD = RowBlock(8192, 128)
TILE_TARGETS = {
    "generic": TileTarget(8, PROJECTION, RESIDUAL, GATED, HEAD, 64, 32, 32, 4, 64, 16, 2, True),
    "ampere": TileTarget(8, PROJECTION, RESIDUAL, GATED, HEAD, 32, 32, 32, 4, 64, 16, 2, False),
    # blocks of 64 rows would be computed in tensor memory, which a call cannot have
    "blackwell": TileTarget(8, PROJECTION, RESIDUAL, GATED, HEAD, 32, 32, 32, 4, 64, 16, 2, True),
}


def tile_target_of(capability: int) -> str:
    """The key of `TILE_TARGETS` for a compute capability such as 90 (9.0).

    Raises UserError for a device that the kernel cannot run on.
    """
    if capability < 80:
        raise UserError(f"GPUs of compute capability {capability / 10} are not supported; use one "
                        f"of 8.0 or later")
    if capability < 90:
        return "ampere"
    return "generic" if capability < 100 else "blackwell"
