"""Declarations of the device functions that dense decoders need; bodies live in each backend.

Rows are ragged: row r of a step belongs to request `row_request[row_base + r]` and stands at
`row_position[row_base + r]`, so prefill chunks, decode and batches are the same calls.
`Indexed("step")` means the entries that the step record (layout.py) names.
"""

from __future__ import annotations

from event_tensor.device_function import (
    WHOLE,
    Cost,
    DeviceFunction,
    Indexed,
    Tile,
    reads,
    updates,
    writes,
)
from event_tensor.symbols import Symbol, as_expr, maximum
from persistent_runtime.functions.activations import SILU

tile_m, tile_n = Symbol("tile_m"), Symbol("tile_n")
rows = Symbol("rows")  # rows that a tile has in this step: at most tile_m; for the cost model only
in_features, row_bytes = Symbol("in_features"), Symbol("row_bytes")  # row_bytes: of a weight
hidden_size, head_dim = Symbol("hidden_size"), Symbol("head_dim")
group_width, group_heads = Symbol("group_width"), Symbol("group_heads")
context, kv_splits = Symbol("context"), Symbol("kv_splits")
kv_row_bytes = Symbol("kv_row_bytes")  # of a position's vector in a KV cache

# Parameters that a call may leave out, and the values with which they do nothing.
# norm_offset: added to each weight of a norm; multiplier: of what is embedded, or added to the
# residual.
PLAIN_NORM = {"norm_offset": 0.0}
ONCE = {"multiplier": 1.0}
PLAIN_GATE = {"activation": SILU}  # one of functions/activations.py

LINEAR_COST = Cost(bytes=tile_n * row_bytes,
                   flops=2 * rows * tile_n * in_features)
# the rows, normalised or rounded, then columns of the gate for all of them
NORM_SCRATCH = (tile_m * in_features + maximum(16 * in_features, tile_m)) * 4
# counts and probability mass of the logits, by their distance from the largest
SAMPLING_BINS = 2048
SAMPLING_SCRATCH = 2 * SAMPLING_BINS * 4
# scores of KV_BLOCK positions at a time for all rows of a tile, or for all query heads of a group;
# the rotated queries of all rows; a key and a value
KV_BLOCK = 64
ATTENTION_SCRATCH = (KV_BLOCK * maximum(tile_m, group_heads) + tile_m * group_width
                     + 2 * head_dim) * 4

embed_tokens = DeviceFunction(
    name="embed_tokens",
    axes=("i",),
    operands=(
        reads("token_ids", WHOLE, Indexed("row_position")),  # [requests, max_context] int32
        reads("row_request", Indexed("step")),  # [plan_rows] int32
        reads("row_position", Indexed("step")),
        reads("weight", WHOLE, WHOLE),  # [vocab, hidden]
        writes("out", Tile("i", tile_m), WHOLE),  # [tokens, hidden] float32
    ),
    parameters=("tile_m", "hidden_size", "rows", "multiplier"),
    cost=Cost(bytes=rows * hidden_size * 4),
    neutral=ONCE,
)

norm_linear = DeviceFunction(
    name="norm_linear",
    axes=("i", "j"),
    operands=(
        reads("x", Tile("i", tile_m), WHOLE),  # [tokens, in_features] float32
        reads("norm_weight", WHOLE),  # [in_features]
        reads("weight", Tile("j", tile_n), WHOLE),  # [out_features, in_features]
        reads("bias", Tile("j", tile_n), optional=True),  # [out_features]
        writes("out", Tile("i", tile_m), Tile("j", tile_n)),  # [tokens, out_features] float32
    ),
    parameters=("tile_m", "tile_n", "in_features", "row_bytes", "rows", "eps", "norm_offset"),
    cost=LINEAR_COST,
    scratch_bytes=NORM_SCRATCH,
    neutral=PLAIN_NORM,
)

linear_residual = DeviceFunction(
    name="linear_residual",
    axes=("i", "j"),
    operands=(
        reads("x", Tile("i", tile_m), WHOLE),  # [tokens, in_features] float32
        reads("weight", Tile("j", tile_n), WHOLE),  # [out_features, in_features]
        reads("bias", Tile("j", tile_n), optional=True),
        updates("residual", Tile("i", tile_m), Tile("j", tile_n)),  # [tokens, out_features] float32
    ),
    parameters=("tile_m", "tile_n", "in_features", "row_bytes", "rows", "multiplier"),
    cost=LINEAR_COST,
    scratch_bytes=NORM_SCRATCH,
    neutral=ONCE,
)

norm_gate_up = DeviceFunction(
    name="norm_gate_up",
    axes=("i", "j"),
    operands=(
        reads("x", Tile("i", tile_m), WHOLE),  # [tokens, in_features] float32
        reads("norm_weight", WHOLE),
        reads("gate_weight", Tile("j", tile_n), WHOLE),  # [out_features, in_features]
        reads("up_weight", Tile("j", tile_n), WHOLE),
        reads("gate_bias", Tile("j", tile_n), optional=True),
        reads("up_bias", Tile("j", tile_n), optional=True),
        writes("out", Tile("i", tile_m), Tile("j", tile_n)),  # act(gate) * up, float32
    ),
    parameters=("tile_m", "tile_n", "in_features", "row_bytes", "rows", "eps", "norm_offset",
                "activation"),
    cost=Cost(bytes=2 * LINEAR_COST.bytes, flops=2 * LINEAR_COST.flops),
    scratch_bytes=NORM_SCRATCH,
    neutral=PLAIN_NORM | PLAIN_GATE,
)

rope_append = DeviceFunction(
    name="rope_append",
    axes=("i", "h"),  # h counts KV heads
    operands=(
        reads("k", Tile("i", tile_m), Tile("h", head_dim)),  # [tokens, kv_heads * head_dim] float32
        reads("v", Tile("i", tile_m), Tile("h", head_dim)),
        reads("k_norm", WHOLE, optional=True),  # [head_dim]; per-head RMS norm (Qwen3)
        reads("cos", WHOLE, WHOLE),  # [max_context, head_dim / 2] float32
        reads("sin", WHOLE, WHOLE),
        reads("row_request", Indexed("step")),
        reads("row_position", Indexed("step")),
        # [requests, kv_heads, max_context, head_dim]
        writes("k_cache", WHOLE, Tile("h", 1), Indexed("row_position", "i", distinct=True), WHOLE),
        writes("v_cache", WHOLE, Tile("h", 1), Indexed("row_position", "i", distinct=True), WHOLE),
    ),
    parameters=("tile_m", "head_dim", "eps", "rows", "norm_offset"),
    cost=Cost(bytes=rows * 4 * head_dim * 4),
    neutral=PLAIN_NORM,
)

attention = DeviceFunction(
    name="attention",
    axes=("i", "h", "s"),  # row tile, KV head with its query heads, split of the context
    operands=(
        reads("q", Tile("i", tile_m), Tile("h", group_width)),  # [tokens, heads * head_dim] float32
        # given where no row sees another one of this step: then the cache has the positions before
        # each row's own, whose key and value are taken from here, as `rope_append` will keep them
        reads("k", Tile("i", tile_m), Tile("h", head_dim), optional=True),
        reads("v", Tile("i", tile_m), Tile("h", head_dim), optional=True),
        reads("q_norm", WHOLE, optional=True),  # [head_dim]; per-head RMS norm (Qwen3)
        reads("k_norm", WHOLE, optional=True),
        reads("cos", WHOLE, WHOLE),  # [max_context, head_dim / 2] float32
        reads("sin", WHOLE, WHOLE),
        reads("k_cache", WHOLE, Tile("h", 1), Indexed("row_position"), WHOLE),
        reads("v_cache", WHOLE, Tile("h", 1), Indexed("row_position"), WHOLE),
        reads("row_request", Indexed("step")),
        reads("row_position", Indexed("step")),
        # unnormalised sum of values, and per head the running maximum and the sum of weights
        writes("partial", Tile("i", tile_m), Tile("s", 1), Tile("h", group_width)),
        writes("stats", Tile("i", tile_m), Tile("s", 1), Tile("h", 2 * group_heads)),
    ),
    # window: how many positions a row sees, itself included; 0 means all of them
    parameters=("tile_m", "head_dim", "group_heads", "group_width", "kv_splits", "window", "scale",
                "eps", "kv_row_bytes", "context", "rows", "norm_offset"),
    cost=Cost(bytes=2 * context * kv_row_bytes // kv_splits,
              flops=4 * rows * group_width * context // kv_splits),
    scratch_bytes=ATTENTION_SCRATCH,
    neutral=PLAIN_NORM,
)

attention_combine = DeviceFunction(
    name="attention_combine",
    axes=("i", "h"),
    operands=(
        reads("partial", Tile("i", tile_m), WHOLE, Tile("h", group_width)),
        reads("stats", Tile("i", tile_m), WHOLE, Tile("h", 2 * group_heads)),
        writes("out", Tile("i", tile_m), Tile("h", group_width)),  # [tokens, heads * head_dim]
    ),
    parameters=("tile_m", "head_dim", "group_heads", "group_width", "kv_splits", "rows"),
    cost=Cost(bytes=rows * group_width * (kv_splits + 1) * 4),
)

norm_lm_head = DeviceFunction(
    name="norm_lm_head",
    axes=("i", "j"),
    operands=(
        reads("x", Indexed("logit_row"), WHOLE),  # [tokens, in_features] float32
        reads("logit_row", Indexed("step")),  # [plan_logit_rows] int32: the token row to answer
        reads("norm_weight", WHOLE),
        reads("weight", Tile("j", tile_n), WHOLE),  # [vocab, in_features]
        writes("logits", Tile("i", tile_m), Tile("j", tile_n)),  # [logit_rows, vocab] float32
        # greedy choice within the tile: [logit_rows, tiles]; NaN where a logit is not finite
        writes("tile_max", Tile("i", tile_m), Tile("j", 1)),
        writes("tile_argmax", Tile("i", tile_m), Tile("j", 1)),
    ),
    parameters=("tile_m", "tile_n", "in_features", "row_bytes", "rows", "eps", "norm_offset"),
    cost=LINEAR_COST,
    scratch_bytes=NORM_SCRATCH,
    neutral=PLAIN_NORM,
)

select_token = DeviceFunction(
    name="select_token",
    axes=("i",),  # one task per logit row
    operands=(
        reads("tile_max", Tile("i", 1), WHOLE),
        reads("tile_argmax", Tile("i", 1), WHOLE),
        reads("logits", Tile("i", 1), WHOLE),  # [logit_rows, vocab] float32
        # [logit_rows, 2, vocab] float32: the processed logits, -inf where a filter dropped the
        # token, and room to work; not touched by a greedy request
        writes("scores", Tile("i", 1), WHOLE, WHOLE),
        reads("sampling", WHOLE, WHOLE),  # [requests, SAMPLING_WORDS] float32
        reads("seed", WHOLE),  # [requests] int64
        reads("processors", WHOLE, WHOLE),  # [requests, PROCESSORS_WORDS] int32
        reads("biases", WHOLE, WHOLE),  # [MAX_BIASES, BIAS_WORDS] int32
        reads("bias_prefixes", WHOLE),  # [MAX_PREFIX_TOKENS] int32
        reads("logit_row", Indexed("step")),
        reads("row_request", Indexed("step")),
        updates("row_position", Indexed("step", "i", distinct=True)),
        writes("token_ids", Indexed("row_request", "i", distinct=True), WHOLE),
        writes("token_time", Indexed("row_request", "i", distinct=True), WHOLE),  # int64, ns
        # [requests, max_context] float32, of the model's own logits
        writes("token_logprob", Indexed("row_request", "i", distinct=True), WHOLE),
        reads("stop_ids", WHOLE),  # [number of end tokens] int32
        reads("length_limit", WHOLE),  # [requests] int32: positions a request may fill
        updates("length", Indexed("row_request", "i", distinct=True)),  # [requests] int32
        updates("finished", Indexed("row_request", "i", distinct=True)),  # [requests] int32
    ),
    scratch_bytes=as_expr(SAMPLING_SCRATCH),
)
