"""Declarations of the device functions of a mixture-of-experts block; bodies live in each backend.

The router's choices become *slots*: every expert that is chosen owns whole tiles of `tile_m` slots,
expert after expert, and the rows that chose it stand there in token order. Shapes below: N tokens,
K = top_k, E experts, H hidden_size, I the experts' inner width, T tiles (`expert_tiles`).
"""

from __future__ import annotations

from event_tensor.device_function import (
    WHOLE,
    Cost,
    DeviceFunction,
    Rows,
    Tile,
    reads,
    updates,
    writes,
)
from event_tensor.symbols import Expr, ExprLike, Symbol, as_expr, minimum
from persistent_runtime.functions.dense import (
    LINEAR_COST,
    ONCE,
    PLAIN_GATE,
    PLAIN_NORM,
    hidden_size,
    tile_m,
    tile_n,
)

top_k = Symbol("top_k")


def expert_tiles(tokens: ExprLike, top_k: ExprLike, num_experts: ExprLike, tile_m: ExprLike
                 ) -> Expr:
    """T: the most tiles that any routing can need.

    A tile is either the first of its expert, of which there are A = min(E, N * K) at most, or one
    of those that the other rows can fill.
    """
    choices = as_expr(tokens) * top_k
    active = minimum(num_experts, choices)
    return active + (choices - active) // tile_m


select_experts = DeviceFunction(
    name="select_experts",
    axes=("i",),  # one task for all rows
    operands=(
        reads("router_logits", WHOLE, WHOLE),  # [N, E] float32
        writes("topk_ids", WHOLE, WHOLE),  # [N, K] int32, best first; the lowest id wins a tie
        writes("topk_weights", WHOLE, WHOLE),  # [N, K] float32
        writes("place", WHOLE, WHOLE),  # [N, K] int32: the slot of each choice
        writes("counts", WHOLE),  # [E] int32: rows of each expert
        writes("tile_indptr", WHOLE),  # [E + 1] int32: expert e has tiles [e] … [e + 1]
        writes("tile_expert", WHOLE),  # [T] int32, -1 beyond the tiles in use
        writes("tile_rows", WHOLE, WHOLE),  # [T, tile_m] int32: the row in each slot, -1 if none
    ),
    # norm_topk: 1 where the K weights of a row are made to add up to one, else 0
    parameters=("tile_m", "top_k", "num_experts", "norm_topk"),
)

group_rows = DeviceFunction(
    name="group_rows",
    axes=("i", "k"),  # one row, one of its choices
    operands=(
        reads("x", Tile("i", 1), WHOLE),  # [N, H] float32
        reads("norm_weight", WHOLE),  # [H]
        reads("topk_ids", Tile("i", 1), Tile("k", 1)),  # [N, K] int32: whom the row's arrival tells
        reads("place", Tile("i", 1), Tile("k", 1)),  # [N, K] int32
        writes("grouped", Rows("place", ("i", "k")), WHOLE),  # [T * tile_m, H] float32
    ),
    parameters=("hidden_size", "eps", "norm_offset"),
    cost=Cost(bytes=2 * hidden_size * 4),
    neutral=PLAIN_NORM,
)

# Of a tile's slots only the first ones hold rows; the others are neither computed nor written.
expert_gate_up = DeviceFunction(
    name="expert_gate_up",
    axes=("t", "j"),
    operands=(
        reads("grouped", Tile("t", tile_m), WHOLE),  # [T * tile_m, H] float32
        reads("weight", Rows("tile_expert", ("t",)), WHOLE, WHOLE),  # [E, 2 * I, H]: gate, then up
        reads("tile_expert", Tile("t", 1)),  # [T] int32
        reads("tile_rows", Tile("t", 1), WHOLE),  # [T, tile_m] int32
        # act(gate) * up: [T * tile_m, I] float32
        writes("inner", Tile("t", tile_m), Tile("j", tile_n)),
    ),
    parameters=("tile_m", "tile_n", "in_features", "row_bytes", "rows", "activation"),
    cost=Cost(bytes=2 * LINEAR_COST.bytes, flops=2 * LINEAR_COST.flops),
    scratch_bytes=tile_m * tile_n * 4,  # the gate's columns, until those of up are there
    neutral=PLAIN_GATE,
)

expert_down = DeviceFunction(
    name="expert_down",
    axes=("t", "j"),
    operands=(
        reads("inner", Tile("t", tile_m), WHOLE),  # [T * tile_m, I] float32
        reads("weight", Rows("tile_expert", ("t",)), Tile("j", tile_n), WHOLE),  # [E, H, I]
        reads("tile_expert", Tile("t", 1)),  # [T] int32
        reads("tile_rows", Tile("t", 1), WHOLE),  # [T, tile_m] int32
        writes("expert_out", Tile("t", tile_m), Tile("j", tile_n)),  # [T * tile_m, H] float32
    ),
    parameters=("tile_m", "tile_n", "in_features", "row_bytes", "rows"),
    cost=LINEAR_COST,
)

combine_experts = DeviceFunction(
    name="combine_experts",
    axes=("i",),
    operands=(
        reads("topk_weights", Tile("i", 1), WHOLE),  # [N, K] float32
        reads("place", Tile("i", 1), WHOLE),  # [N, K] int32
        reads("expert_out", Rows("place", ("i",)), WHOLE),  # [T * tile_m, H] float32
        updates("residual", Tile("i", 1), WHOLE),  # [N, H] float32
    ),
    parameters=("hidden_size", "top_k", "multiplier"),
    cost=Cost(bytes=(top_k + 2) * hidden_size * 4),
    scratch_bytes=hidden_size * 4,  # the weighted sum before it joins the residual
    neutral=ONCE,
)
