"""Bodies of a mixture-of-experts block: route, gather, the experts' products, combine."""

from __future__ import annotations

import numpy as np

from persistent_runtime.cpu.bodies.activations import activate_times
from persistent_runtime.cpu.bodies.arguments import (
    FLOAT32,
    INT32,
    dim,
    float_parameter,
    operand,
    record_offsets,
    tile_range,
    weight_row,
)
from persistent_runtime.cpu.compile.registry import cpu_body
from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.blocks import begin_stream
from persistent_runtime.cpu.vectors.intrinsics import advance
from persistent_runtime.cpu.vectors.numerics import (
    MINUS_INFINITY,
    ONE,
    ZERO,
    exp,
    matmul_rows,
    rms_norm,
)
from persistent_runtime.functions import experts as moe_functions

SELECT = record_offsets(moe_functions.select_experts)
GROUP = record_offsets(moe_functions.group_rows)
GATE_UP = record_offsets(moe_functions.expert_gate_up)
DOWN = record_offsets(moe_functions.expert_down)
COMBINE = record_offsets(moe_functions.combine_experts)
LOWEST = np.finfo(np.float32).min  # ranks below every number and above an empty entry, -inf


@device_jit
def rank_experts(logits, num_experts, top_k, ids, scores):  # noqa: ANN201
    """The `top_k` largest logits and their experts, best first; NaN and -inf come last, and the
    lowest expert wins a tie. ids, scores: [top_k]."""
    for k in range(top_k):
        scores[k] = MINUS_INFINITY
    for e in range(num_experts):
        score = logits[e] if logits[e] > LOWEST else LOWEST
        if score > scores[top_k - 1]:
            k = top_k - 1
            while k > 0 and score > scores[k - 1]:
                scores[k], ids[k] = scores[k - 1], ids[k - 1]
                k -= 1
            scores[k], ids[k] = score, e


@device_jit
def weigh_experts(logits, num_experts, top_k, norm_topk, ids, weights):
    """weights = softmax(logits)[ids], where asked for divided by their sum; a NaN reaches all."""
    largest = logits[ids[0]]
    total = ZERO
    for e in range(num_experts):
        total += exp(logits[e] - largest)
    kept = ZERO
    for k in range(top_k):
        weights[k] = exp(logits[ids[k]] - largest) / total
        kept += weights[k]
    if norm_topk != 0:
        for k in range(top_k):
            weights[k] /= kept


@device_jit
def lay_out_tiles(counts, num_experts, slots, tile_indptr, tile_expert, tiles):
    """Gives every expert as many tiles of `slots` as its rows need; names each tile's expert."""
    tile = 0
    for e in range(num_experts):
        tile_indptr[e] = tile
        for _ in range((counts[e] + slots - 1) // slots):
            tile_expert[tile] = e
            tile += 1
    tile_indptr[num_experts] = tile
    for unused in range(tile, tiles):
        tile_expert[unused] = -1


@cpu_body(moe_functions.select_experts)
def select_experts(arguments, tile, step, scratch, formats):
    """Each row's top_k experts and their weights, and a slot for each choice."""
    num_experts, top_k = arguments[SELECT.num_experts], arguments[SELECT.top_k]
    slots, tokens = arguments[SELECT.tile_m], dim(arguments, SELECT.router_logits, 0)
    tiles = dim(arguments, SELECT.tile_expert, 0)
    ids = operand(arguments, SELECT.topk_ids, INT32)
    counts = operand(arguments, SELECT.counts, INT32)
    for e in range(num_experts):
        counts[e] = 0
    for row in range(tokens):
        logits = advance(operand(arguments, SELECT.router_logits, FLOAT32), row * num_experts)
        row_ids = advance(ids, row * top_k)
        weights = advance(operand(arguments, SELECT.topk_weights, FLOAT32), row * top_k)
        rank_experts(logits, num_experts, top_k, row_ids, weights)
        weigh_experts(logits, num_experts, top_k, arguments[SELECT.norm_topk], row_ids, weights)
        for k in range(top_k):
            counts[row_ids[k]] += 1
    tile_indptr = operand(arguments, SELECT.tile_indptr, INT32)
    lay_out_tiles(counts, num_experts, slots, tile_indptr,
                  operand(arguments, SELECT.tile_expert, INT32), tiles)
    place, tile_rows = (operand(arguments, SELECT.place, INT32),
                        operand(arguments, SELECT.tile_rows, INT32))
    for slot in range(tiles * slots):
        tile_rows[slot] = -1
    for e in range(num_experts):
        counts[e] = 0  # they count once more, as the rows take their slots
    for choice in range(tokens * top_k):
        expert = ids[choice]
        slot = tile_indptr[expert] * slots + counts[expert]
        counts[expert] += 1
        place[choice] = slot
        tile_rows[slot] = choice // top_k


@cpu_body(moe_functions.group_rows)
def group_rows(arguments, tile, step, scratch, formats):
    """grouped[place[i, k]] = rms_norm(x[i])"""
    length = arguments[GROUP.hidden_size]
    choice = np.int64(tile[0]) * dim(arguments, GROUP.place, 1) + tile[1]
    slot = np.int64(operand(arguments, GROUP.place, INT32)[choice])
    rms_norm(advance(operand(arguments, GROUP.x, FLOAT32), np.int64(tile[0]) * length),
             operand(arguments, GROUP.norm_weight, formats.norm_weight),
             float_parameter(arguments, GROUP.norm_offset), length,
             float_parameter(arguments, GROUP.eps),
             advance(operand(arguments, GROUP.grouped, FLOAT32), slot * length))


@device_jit
def filled_slots(arguments, tile_rows, tile, slots):
    """How many rows stand in a tile: they are in its first slots."""
    rows = advance(operand(arguments, tile_rows, INT32), tile * slots)
    count = 0
    while count < slots and rows[count] >= 0:
        count += 1
    return count


@cpu_body(moe_functions.expert_gate_up)
def expert_gate_up(arguments, tile, step, scratch, formats):
    """inner = act(grouped @ gate[e].T) * (grouped @ up[e].T) for the expert e of the tile"""
    length, slots = arguments[GATE_UP.in_features], arguments[GATE_UP.tile_m]
    t, inner_size = np.int64(tile[0]), dim(arguments, GATE_UP.inner, 1)
    rows = filled_slots(arguments, GATE_UP.tile_rows, t, slots)
    if rows == 0:
        return
    begin, end = tile_range(tile[1], arguments[GATE_UP.tile_n], inner_size)
    columns = end - begin
    expert = np.int64(operand(arguments, GATE_UP.tile_expert, INT32)[t])
    first = 2 * expert * inner_size + begin
    gate_weight = weight_row(arguments, GATE_UP.weight, first, length, formats.weight)
    up_weight = weight_row(arguments, GATE_UP.weight, first + inner_size, length, formats.weight)
    begin_stream(gate_weight)
    begin_stream(up_weight)  # waits in the cache until the gate's columns are done
    x = advance(operand(arguments, GATE_UP.grouped, FLOAT32), t * slots * length)
    inner = advance(operand(arguments, GATE_UP.inner, FLOAT32), t * slots * inner_size + begin)
    matmul_rows(gate_weight, columns, length, x, length, rows, scratch, columns, keep=0,
                ahead=None)
    matmul_rows(up_weight, columns, length, x, length, rows, inner, inner_size, keep=0,
                ahead=None)
    for m in range(rows):
        activate_times(arguments[GATE_UP.activation], advance(scratch, m * columns),
                       advance(inner, m * inner_size), columns)


@cpu_body(moe_functions.expert_down)
def expert_down(arguments, tile, step, scratch, formats):
    """expert_out = inner @ weight[e].T for the expert e of the tile"""
    length, slots = arguments[DOWN.in_features], arguments[DOWN.tile_m]
    t, out_stride = np.int64(tile[0]), dim(arguments, DOWN.expert_out, 1)
    rows = filled_slots(arguments, DOWN.tile_rows, t, slots)
    if rows == 0:
        return
    begin, end = tile_range(tile[1], arguments[DOWN.tile_n], out_stride)
    expert = np.int64(operand(arguments, DOWN.tile_expert, INT32)[t])
    weight = weight_row(arguments, DOWN.weight, expert * out_stride + begin, length,
                        formats.weight)
    begin_stream(weight)
    x = advance(operand(arguments, DOWN.inner, FLOAT32), t * slots * length)
    out = advance(operand(arguments, DOWN.expert_out, FLOAT32), t * slots * out_stride + begin)
    matmul_rows(weight, end - begin, length, x, length, rows, out, out_stride, keep=0,
                ahead=None)


@cpu_body(moe_functions.combine_experts)
def combine_experts(arguments, tile, step, scratch, formats):
    """residual[i] += multiplier * Σ_k topk_weights[i, k] * expert_out[place[i, k]]"""
    length, top_k = arguments[COMBINE.hidden_size], arguments[COMBINE.top_k]
    row = np.int64(tile[0])
    place = advance(operand(arguments, COMBINE.place, INT32), row * top_k)
    weights = advance(operand(arguments, COMBINE.topk_weights, FLOAT32), row * top_k)
    for d in range(length):
        scratch[d] = ZERO
    for k in range(top_k):
        weight = weights[k]
        out = advance(operand(arguments, COMBINE.expert_out, FLOAT32),
                      np.int64(place[k]) * length)
        for d in range(length):
            scratch[d] += weight * out[d]
    residual = advance(operand(arguments, COMBINE.residual, FLOAT32), row * length)
    multiplier = float_parameter(arguments, COMBINE.multiplier)
    if multiplier == ONE:
        for d in range(length):
            residual[d] += scratch[d]
    else:
        for d in range(length):
            residual[d] += scratch[d] * multiplier
