"""Bodies of a mixture-of-experts block: route, gather, the experts' products, combine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton
import triton.language as tl

from persistent_runtime.functions import experts as moe_functions
from persistent_runtime.gpu.bodies.arguments import (
    dim,
    float_parameter,
    operand,
    record_offsets,
    tile_range,
    weight_row,
    word,
)
from persistent_runtime.gpu.bodies.linear import linear_configuration, multiply
from persistent_runtime.gpu.bodies.pointwise import norm_factors
from persistent_runtime.gpu.compile.registry import Shape, gpu_body

SELECT = record_offsets(moe_functions.select_experts)
GROUP = record_offsets(moe_functions.group_rows)
GATE_UP = record_offsets(moe_functions.expert_gate_up)
DOWN = record_offsets(moe_functions.expert_down)
COMBINE = record_offsets(moe_functions.combine_experts)
ROUTER_ELEMENTS = 2048  # logits that are ranked at once: registers of eight warps
COMBINE_ELEMENTS = 16384  # elements of the experts' outputs that are on their way at once
NORM_ELEMENTS = 4096
PLACES, SLOTS = tl.constexpr(256), tl.constexpr(32)
# ranks below every number and above what is no candidate, -inf
LOWEST = tl.constexpr(float(np.finfo(np.float32).min))


@dataclass(frozen=True, slots=True)
class RouterConfiguration:
    """rows ranked at once, and room for the experts: powers of two. alignment: what the number
    of experts is a multiple of; loads as wide as that keep a row within few warps."""

    rows: int
    experts: int
    alignment: int


@dataclass(frozen=True, slots=True)
class RowConfiguration:
    formats: Any  # of the operands, by their names
    alignment: int  # what hidden_size is a multiple of
    choices: int
    block: int
    norm_offset: float  # added to each weight of the norm


def router_configuration(shape: Shape) -> RouterConfiguration:
    counts = shape.parameter("num_experts")
    experts = triton.next_power_of_2(max(counts))
    return RouterConfiguration(max(ROUTER_ELEMENTS // experts, 1), experts,
                               math.gcd(16, *counts))


def row_configuration(shape: Shape, elements: int, choices: int = 1) -> RowConfiguration:
    """Blocks of `elements` in all, for as many vectors at once as a row has choices."""
    lengths = shape.parameter("hidden_size")
    widest = triton.next_power_of_2(max(lengths))
    return RowConfiguration(shape.formats, math.gcd(16, *lengths), choices,
                            min(elements // choices, widest), shape.constant("norm_offset", 0.0))


def combine_configuration(shape: Shape) -> RowConfiguration:
    choices = triton.next_power_of_2(max(shape.parameter("top_k")))
    return row_configuration(shape, COMBINE_ELEMENTS, choices)


@triton.jit
def route_rows(arguments, first, tokens, counts, CONFIG: tl.constexpr):
    """Experts and weights of a block of rows; returns `counts` [experts] with these rows in them.

    place gets the number of each choice among its expert's rows. All of it happens in the layout
    of the logits: a choice is stored from where its expert's logit is.
    """
    ROWS: tl.constexpr = CONFIG.rows
    EXPERTS: tl.constexpr = CONFIG.experts
    num_experts = word(arguments, SELECT.num_experts, CONFIG.alignment)
    top_k = word(arguments, SELECT.top_k)
    row = first + tl.arange(0, ROWS)[:, None]
    e = tl.arange(0, EXPERTS)[None, :]
    mask = (row < tokens) & (e < num_experts)
    logits = tl.load(operand(arguments, SELECT.router_logits, tl.float32) + row * num_experts + e,
                     mask=mask, other=float("-inf"))
    candidates = tl.where(logits > LOWEST, logits, LOWEST)  # NaN is not larger
    candidates = tl.where(e < num_experts, candidates, float("-inf"))
    choice = tl.full([ROWS, EXPERTS], -1, tl.int32)
    for k in tl.range(0, top_k):
        best = tl.argmax(candidates, axis=1)[:, None]  # the lowest expert wins a tie
        choice = tl.where(e == best, k, choice)
        candidates = tl.where(e == best, float("-inf"), candidates)
    mask = mask & (choice >= 0)
    weights = tl.exp(logits - tl.max(logits, axis=1)[:, None])
    weights = weights / tl.sum(weights, axis=1)[:, None]
    if word(arguments, SELECT.norm_topk) != 0:
        weights = weights / tl.sum(tl.where(mask, weights, 0), axis=1)[:, None]
    chosen = mask.to(tl.int32)
    rank = tl.cumsum(chosen, axis=0) - chosen + counts[None, :]
    at = row * top_k + choice
    tl.store(operand(arguments, SELECT.topk_ids, tl.int32) + at, e, mask=mask)
    tl.store(operand(arguments, SELECT.topk_weights, tl.float32) + at, weights, mask=mask)
    tl.store(operand(arguments, SELECT.place, tl.int32) + at, rank, mask=mask)
    return counts + tl.sum(chosen, axis=0)


@gpu_body(moe_functions.select_experts, configure=router_configuration)
@triton.jit(noinline=True)
def select_experts(arguments, tile, step, CONFIG: tl.constexpr):
    """Each row's top_k experts and their weights, and a slot for each choice."""
    EXPERTS: tl.constexpr = CONFIG.experts
    num_experts = word(arguments, SELECT.num_experts, CONFIG.alignment)
    top_k = word(arguments, SELECT.top_k)
    slots, tokens = word(arguments, SELECT.tile_m), dim(arguments, SELECT.router_logits, 0)
    tiles = dim(arguments, SELECT.tile_expert, 0)
    tile_expert = operand(arguments, SELECT.tile_expert, tl.int32)
    tile_rows = operand(arguments, SELECT.tile_rows, tl.int32)
    for first in tl.range(0, tiles, PLACES):
        t = first + tl.arange(0, PLACES)
        tl.store(tile_expert + t, -1, mask=t < tiles)
    for first in tl.range(0, tiles * slots, PLACES):
        slot = first + tl.arange(0, PLACES)
        tl.store(tile_rows + slot, -1, mask=slot < tiles * slots)

    counts = tl.zeros([EXPERTS], tl.int32)
    for first in tl.range(0, tokens, CONFIG.rows):
        counts = route_rows(arguments, first, tokens, counts, CONFIG)
    e = tl.arange(0, EXPERTS)
    tl.store(operand(arguments, SELECT.counts, tl.int32) + e, counts, mask=e < num_experts)
    tile_indptr = operand(arguments, SELECT.tile_indptr, tl.int32)
    tl.store(tile_indptr, 0)
    tl.store(tile_indptr + 1 + e, tl.cumsum(tl.cdiv(counts, slots), axis=0),
             mask=e < num_experts)

    tl.debug_barrier()  # ids, ranks and tile_indptr are read, empty slots are filled, by others
    place = operand(arguments, SELECT.place, tl.int32)
    for first in tl.range(0, tokens * top_k, PLACES):
        choice = first + tl.arange(0, PLACES)
        mask = choice < tokens * top_k
        expert = tl.load(operand(arguments, SELECT.topk_ids, tl.int32) + choice, mask=mask,
                         other=0)
        rank = tl.load(place + choice, mask=mask, other=0)
        slot = tl.load(tile_indptr + expert, mask=mask, other=0) * slots + rank
        tl.store(place + choice, slot, mask=mask)
        tl.store(tile_rows + slot, choice // top_k, mask=mask)
        tl.store(tile_expert + slot // slots, expert, mask=mask & (slot % slots == 0))


@gpu_body(moe_functions.group_rows, configure=lambda shape: row_configuration(shape, NORM_ELEMENTS))
@triton.jit(noinline=True)
def group_rows(arguments, tile, step, CONFIG: tl.constexpr):
    """grouped[place[i, k]] = rms_norm(x[i])"""
    BLOCK: tl.constexpr = CONFIG.block
    length = word(arguments, GROUP.hidden_size, CONFIG.alignment)
    choice = tile[0] * dim(arguments, GROUP.place, 1) + tile[1]
    slot = tl.load(operand(arguments, GROUP.place, tl.int32) + choice)
    x = operand(arguments, GROUP.x, tl.float32) + tile[0] * length
    norm_weight = operand(arguments, GROUP.norm_weight, CONFIG.formats.norm_weight.element)
    grouped = operand(arguments, GROUP.grouped, tl.float32) + slot.to(tl.int64) * length
    squares = tl.zeros([BLOCK], tl.float32)
    for first in tl.range(0, length, BLOCK):
        d = first + tl.arange(0, BLOCK)
        value = tl.load(x + d, mask=d < length, other=0)
        squares += value * value
    factor = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / length.to(tl.float32)
                           + float_parameter(arguments, GROUP.eps))
    for first in tl.range(0, length, BLOCK):
        d = first + tl.arange(0, BLOCK)
        value = tl.load(x + d, mask=d < length, other=0)
        norm = norm_factors(tl.load(norm_weight + d, mask=d < length, other=0),
                            CONFIG.norm_offset)
        tl.store(grouped + d, value * factor * norm, mask=d < length)


@triton.jit
def filled_slots(tile_rows, tile, slots):
    """How many rows stand in a tile: they are in its first slots."""
    filled = tl.zeros([SLOTS], tl.int32)
    for first in tl.range(0, slots, SLOTS):
        slot = first + tl.arange(0, SLOTS)
        row = tl.load(tile_rows + tile * slots + slot, mask=slot < slots, other=-1)
        filled += (row >= 0).to(tl.int32)
    return tl.sum(filled, axis=0)


@gpu_body(moe_functions.expert_gate_up,
          configure=lambda shape: linear_configuration(shape, shape.target.gated, "weight",
                                                       "weight"))
@triton.jit(noinline=True)
def expert_gate_up(arguments, tile, step, CONFIG: tl.constexpr):
    """inner = act(grouped @ gate[e].T) * (grouped @ up[e].T) for the expert e of the tile"""
    length = word(arguments, GATE_UP.in_features, CONFIG.alignment)
    slots, inner_size = word(arguments, GATE_UP.tile_m), dim(arguments, GATE_UP.inner, 1)
    rows = filled_slots(operand(arguments, GATE_UP.tile_rows, tl.int32), tile[0], slots)
    begin, end = tile_range(tile[1], word(arguments, GATE_UP.tile_n), inner_size)
    expert = tl.load(operand(arguments, GATE_UP.tile_expert, tl.int32) + tile[0])
    row = 2 * expert.to(tl.int64) * inner_size + begin
    weights = (weight_row(arguments, GATE_UP.weight, row, length, CONFIG.formats.weight),
               weight_row(arguments, GATE_UP.weight, row + inner_size, length,
                          CONFIG.formats.weight))
    x = operand(arguments, GATE_UP.grouped, tl.float32)
    first = tile[0] * slots
    multiply((x, x, x, 0.0), weights, (),
             (operand(arguments, GATE_UP.inner, tl.float32), inner_size),
             (length, first, first + rows, begin, end), tile, step, CONFIG, GATED=True)


@gpu_body(moe_functions.expert_down,
          configure=lambda shape: linear_configuration(shape, shape.target.residual, "weight"))
@triton.jit(noinline=True)
def expert_down(arguments, tile, step, CONFIG: tl.constexpr):
    """expert_out = inner @ weight[e].T for the expert e of the tile"""
    length = word(arguments, DOWN.in_features, CONFIG.alignment)
    slots, out_stride = word(arguments, DOWN.tile_m), dim(arguments, DOWN.expert_out, 1)
    rows = filled_slots(operand(arguments, DOWN.tile_rows, tl.int32), tile[0], slots)
    begin, end = tile_range(tile[1], word(arguments, DOWN.tile_n), out_stride)
    expert = tl.load(operand(arguments, DOWN.tile_expert, tl.int32) + tile[0])
    weight = weight_row(arguments, DOWN.weight, expert.to(tl.int64) * out_stride + begin, length,
                        CONFIG.formats.weight)
    x = operand(arguments, DOWN.inner, tl.float32)
    first = tile[0] * slots
    multiply((x, x, x, 0.0), (weight,), (),
             (operand(arguments, DOWN.expert_out, tl.float32), out_stride),
             (length, first, first + rows, begin, end), tile, step, CONFIG)


@gpu_body(moe_functions.combine_experts, configure=combine_configuration)
@triton.jit(noinline=True)
def combine_experts(arguments, tile, step, CONFIG: tl.constexpr):
    """residual[i] += multiplier * Σ_k topk_weights[i, k] * expert_out[place[i, k]]"""
    BLOCK: tl.constexpr = CONFIG.block
    length = word(arguments, COMBINE.hidden_size, CONFIG.alignment)
    top_k = word(arguments, COMBINE.top_k)
    k = tl.arange(0, CONFIG.choices)
    at = tile[0] * top_k + k
    slot = tl.load(operand(arguments, COMBINE.place, tl.int32) + at, mask=k < top_k, other=0)
    weight = tl.load(operand(arguments, COMBINE.topk_weights, tl.float32) + at, mask=k < top_k,
                     other=0)
    outputs = operand(arguments, COMBINE.expert_out, tl.float32) + slot.to(tl.int64) * length
    residual = operand(arguments, COMBINE.residual, tl.float32) + tile[0] * length
    multiplier = float_parameter(arguments, COMBINE.multiplier)
    for first in tl.range(0, length, BLOCK):
        d = first + tl.arange(0, BLOCK)
        output = tl.load(outputs[:, None] + d[None, :],
                         mask=(k < top_k)[:, None] & (d < length)[None, :], other=0)
        value = tl.load(residual + d, mask=d < length, other=0)
        total = tl.sum(output * weight[:, None], axis=0)
        tl.store(residual + d, value + total * multiplier, mask=d < length)
