"""Bodies of attention: rotate and append keys, partial softmax over a split of the context,
combine.

The unit of work is a pair (row, query head of the group), flattened: pair p of a tile is row
p // group_heads and head p % group_heads, so one block of vectors serves decode and prefill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from persistent_runtime.functions import dense as device_functions
from persistent_runtime.gpu.bodies.arguments import (
    dim,
    float_parameter,
    is_given,
    kv_vector,
    operand,
    record_offsets,
    row_entry,
    tile_range,
    word,
)
from persistent_runtime.gpu.bodies.dot import widened_dot
from persistent_runtime.gpu.bodies.pointwise import norm_factors
from persistent_runtime.gpu.compile.registry import Shape, gpu_body

ROPE = record_offsets(device_functions.rope_append)
ATTENTION = record_offsets(device_functions.attention)
COMBINE = record_offsets(device_functions.attention_combine)
FAR = tl.constexpr(2**30)


@dataclass(frozen=True, slots=True)
class HeadConfiguration:
    """head_block: head_dim, rounded up to a power of two."""

    formats: Any  # of the operands, by their names
    interpreted: bool
    alignment: int  # what head_dim is a multiple of
    head_block: int
    pairs: int
    kv_block: int
    stages: int
    norm_offset: float  # added to each weight of the heads' norms


def head_configuration(shape: Shape) -> HeadConfiguration:
    head_dims = shape.parameter("head_dim")
    head_dim, target = max(head_dims), shape.target
    return HeadConfiguration(
        shape.formats, shape.interpreted, math.gcd(16, *head_dims),
        max(triton.next_power_of_2(head_dim), 16), target.query_rows, target.kv_block,
        target.kv_stages, shape.constant("norm_offset", 0.0))


@triton.jit
def narrow(values, TYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """float32 → TYPE, rounded to nearest even. The interpreter would cut bfloat16 off instead."""
    if INTERPRETED:
        if TYPE == tl.bfloat16:
            bits = values.to(tl.int32, bitcast=True)
            values = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return values.to(TYPE)


@triton.jit
def rotated(vectors, norm, normed, cos, sin, there, head_dim, eps, CONFIG: tl.constexpr):
    """rotate_half_rope(optional_norm(vectors)), [vectors, head_block] float32, zero where there is
    nothing: element d pairs with d + head_dim / 2.

    vectors: [vectors] pointers to heads; cos, sin: [vectors] pointers; there: [vectors] mask.
    """
    HEAD_BLOCK: tl.constexpr = CONFIG.head_block
    half = head_dim // 2
    d = tl.arange(0, HEAD_BLOCK)
    is_first = d < half
    pair = tl.where(is_first, d + half, d - half)
    angle = tl.where(is_first, d, d - half)[None, :]
    mask = there[:, None] & (d < head_dim)[None, :]
    a = tl.load(vectors[:, None] + d[None, :], mask=mask, other=0)
    b = tl.load(vectors[:, None] + pair[None, :], mask=mask, other=0)
    c = tl.load(cos[:, None] + angle, mask=mask, other=0)
    s = tl.load(sin[:, None] + angle, mask=mask, other=0)
    if normed:
        squares = tl.sum(a * a, axis=1)
        factor = (1.0 / tl.sqrt(squares / head_dim.to(tl.float32) + eps))[:, None]
        weight = tl.load(norm + d, mask=d < head_dim, other=0)
        a = a * factor * norm_factors(weight, CONFIG.norm_offset)[None, :]
        weight = tl.load(norm + pair, mask=d < head_dim, other=0)
        b = b * factor * norm_factors(weight, CONFIG.norm_offset)[None, :]
    return a * c + b * tl.where(is_first, -1.0, 1.0)[None, :] * s


@triton.jit
def key_and_value(arguments, OFFSETS: tl.constexpr, row, position, there, head,
                  CONFIG: tl.constexpr):
    """What the cache keeps of rows: (rope(k), v), [rows, head_block] each, as they are stored.

    OFFSETS: those of the device function's record that has the rows'.
    """
    head_dim = word(arguments, OFFSETS.head_dim, CONFIG.alignment)
    angles = position * (head_dim // 2)
    at = row * dim(arguments, OFFSETS.k, 1, CONFIG.alignment) + head * head_dim
    d = tl.arange(0, CONFIG.head_block)[None, :]
    v = tl.load(operand(arguments, OFFSETS.v, tl.float32) + at[:, None] + d,
                mask=there[:, None] & (d < head_dim), other=0)
    k = rotated(operand(arguments, OFFSETS.k, tl.float32) + at,
                operand(arguments, OFFSETS.k_norm, CONFIG.formats.k_norm.element),
                is_given(arguments, OFFSETS.k_norm),
                operand(arguments, OFFSETS.cos, tl.float32) + angles,
                operand(arguments, OFFSETS.sin, tl.float32) + angles, there, head_dim,
                float_parameter(arguments, OFFSETS.eps), CONFIG)
    return (narrow(k, CONFIG.formats.k_cache.element, CONFIG.interpreted),
            narrow(v, CONFIG.formats.v_cache.element, CONFIG.interpreted))


@gpu_body(device_functions.rope_append, configure=head_configuration)
@triton.jit(noinline=True)
def rope_append(arguments, tile, step, CONFIG: tl.constexpr):
    """k_cache, v_cache at the row's position = rope(k), v"""
    ROWS: tl.constexpr = CONFIG.pairs
    first, last = tile_range(tile[0], word(arguments, ROPE.tile_m), dim(arguments, ROPE.k, 0))
    d = tl.arange(0, CONFIG.head_block)[None, :]
    for first_row in tl.range(first, last, ROWS):
        row = first_row + tl.arange(0, ROWS)
        there = row < last
        mask = there[:, None] & (d < word(arguments, ROPE.head_dim, CONFIG.alignment))
        request = row_entry(arguments, ROPE.row_request, step, row, there)
        position = row_entry(arguments, ROPE.row_position, step, row, there)
        k, v = key_and_value(arguments, ROPE, row, position, there, tile[1], CONFIG)
        k_cache = kv_vector(arguments, ROPE.k_cache, request, tile[1], position, CONFIG.alignment,
                            CONFIG.formats.k_cache)
        tl.store(k_cache[:, None] + d, k, mask=mask)
        v_cache = kv_vector(arguments, ROPE.v_cache, request, tile[1], position, CONFIG.alignment,
                            CONFIG.formats.v_cache)
        tl.store(v_cache[:, None] + d, v, mask=mask)


@triton.jit
def split_range(arguments, position, split):
    """[begin, end) of the positions that a row at `position` sees in this split; maybe empty."""
    window, kv_splits = word(arguments, ATTENTION.window), word(arguments, ATTENTION.kv_splits)
    visible_end = position + 1
    visible_begin = tl.where(window > 0, tl.maximum(visible_end - window, 0), 0)
    piece = (visible_end - visible_begin + kv_splits - 1) // kv_splits
    begin = tl.minimum(visible_begin + split * piece, visible_end)
    return begin, tl.minimum(begin + piece, visible_end)


@triton.jit
def begin_with_own(arguments, row, position, sees_own, q, head, CONFIG: tl.constexpr):
    """The running softmax after the position of each row itself, where a split has it: its key and
    value as the cache will have them later. Before the cache is read, so that all of it is on its
    way at once.

    row, position, sees_own: [pairs]; q: [pairs, head_block]; returns (largest, total, partial).
    """
    k, v = key_and_value(arguments, ATTENTION, row, position, sees_own, head, CONFIG)
    k, v = k.to(tl.float32), v.to(tl.float32)
    score = tl.where(sees_own, tl.sum(q * k, axis=1), float("-inf"))
    return score, sees_own.to(tl.float32), v


@triton.jit
def attend_pairs(arguments, step, first, stop, first_pair, request, head, split,
                 CONFIG: tl.constexpr):
    """A block of pairs of rows [first, stop) of one request, over their split of the context."""
    PAIRS: tl.constexpr = CONFIG.pairs
    HEAD_BLOCK: tl.constexpr = CONFIG.head_block
    KV_BLOCK: tl.constexpr = CONFIG.kv_block
    head_dim = word(arguments, ATTENTION.head_dim, CONFIG.alignment)
    group_heads = word(arguments, ATTENTION.group_heads)
    scale = float_parameter(arguments, ATTENTION.scale)
    width = dim(arguments, ATTENTION.partial, 2, CONFIG.alignment)
    stats_width = dim(arguments, ATTENTION.stats, 2)
    pair = first_pair + tl.arange(0, PAIRS)
    row = first + pair // group_heads
    query_head = head * group_heads + pair % group_heads
    there = row < stop
    position = row_entry(arguments, ATTENTION.row_position, step, row, there)
    begin, end = split_range(arguments, position, split)
    sees = there & (begin < end)
    sees_own = sees & (end > position) & is_given(arguments, ATTENTION.k)
    end = tl.where(sees_own, position, end)  # the cache has only what lies before
    context_begin = tl.min(tl.where(sees, begin, FAR), axis=0)
    context_end = tl.max(tl.where(sees, end, 0), axis=0)

    d = tl.arange(0, HEAD_BLOCK)
    in_head = d < head_dim
    mask = there[:, None] & in_head[None, :]
    angles = position * (head_dim // 2)
    q = rotated(operand(arguments, ATTENTION.q, tl.float32) + row * width + query_head * head_dim,
                operand(arguments, ATTENTION.q_norm, CONFIG.formats.q_norm.element),
                is_given(arguments, ATTENTION.q_norm),
                operand(arguments, ATTENTION.cos, tl.float32) + angles,
                operand(arguments, ATTENTION.sin, tl.float32) + angles, there, head_dim,
                float_parameter(arguments, ATTENTION.eps), CONFIG) * scale
    k_cache = kv_vector(arguments, ATTENTION.k_cache, request, head, 0, CONFIG.alignment,
                        CONFIG.formats.k_cache)
    v_cache = kv_vector(arguments, ATTENTION.v_cache, request, head, 0, CONFIG.alignment,
                        CONFIG.formats.v_cache)
    partial = tl.zeros([PAIRS, HEAD_BLOCK], tl.float32)
    largest = tl.full([PAIRS], float("-inf"), tl.float32)
    total = tl.zeros([PAIRS], tl.float32)
    if is_given(arguments, ATTENTION.k):
        largest, total, partial = begin_with_own(arguments, row, position, sees_own, q, head,
                                                 CONFIG)
    for t0 in tl.range(context_begin, context_end, KV_BLOCK, num_stages=CONFIG.stages):
        t = t0 + tl.arange(0, KV_BLOCK)
        known = t < context_end
        k = tl.load(k_cache + t[None, :] * head_dim + d[:, None],
                    mask=known[None, :] & in_head[:, None], other=0)  # [head_dim, positions]
        scores = widened_dot(q, k, tl.zeros([PAIRS, KV_BLOCK], tl.float32), CONFIG)
        visible = (t[None, :] >= begin[:, None]) & (t[None, :] < end[:, None])
        scores = tl.where(visible, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        # a pair that has seen nothing yet keeps -inf, whose difference would be NaN
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        weights = tl.exp(scores - base[:, None])
        decay = tl.exp(largest - base)
        total = total * decay + tl.sum(weights, axis=1)
        v = tl.load(v_cache + t[:, None] * head_dim + d[None, :],
                    mask=known[:, None] & in_head[None, :], other=0)  # [positions, head_dim]
        partial = widened_dot(weights, v, partial * decay[:, None], CONFIG)
        largest = new_largest
    kv_splits = word(arguments, ATTENTION.kv_splits)
    slot = row * kv_splits + split
    out = operand(arguments, ATTENTION.partial, tl.float32)
    tl.store(out + (slot * width + query_head * head_dim)[:, None] + d[None, :], partial, mask=mask)
    stats = operand(arguments, ATTENTION.stats, tl.float32) + slot * stats_width + 2 * query_head
    tl.store(stats, largest, mask=there)
    tl.store(stats + 1, total, mask=there)


@gpu_body(device_functions.attention, configure=head_configuration)
@triton.jit(noinline=True)
def attention(arguments, tile, step, CONFIG: tl.constexpr):
    """partial, stats = unnormalised softmax(rope(q) @ k.T * scale) @ v over one split"""
    PAIRS: tl.constexpr = CONFIG.pairs
    first, last = tile_range(tile[0], word(arguments, ATTENTION.tile_m),
                             dim(arguments, ATTENTION.q, 0))
    head, split = tile[1], tile[2]
    group_heads = word(arguments, ATTENTION.group_heads)
    while first < last:
        # rows of one request share its cache
        request = row_entry(arguments, ATTENTION.row_request, step, first, True)
        stop = first + 1
        same = stop < last
        while same:
            same = row_entry(arguments, ATTENTION.row_request, step, stop, True) == request
            stop += same.to(tl.int32)
            same = same & (stop < last)
        for first_pair in tl.range(0, (stop - first) * group_heads, PAIRS):
            attend_pairs(arguments, step, first, stop, first_pair, request, head, split, CONFIG)
        first = stop


@gpu_body(device_functions.attention_combine, configure=head_configuration)
@triton.jit(noinline=True)
def attention_combine(arguments, tile, step, CONFIG: tl.constexpr):
    """out = Σ_s partial[s] * exp(max[s] - max) / Σ_s sum[s] * exp(max[s] - max)"""
    PAIRS: tl.constexpr = CONFIG.pairs
    HEAD_BLOCK: tl.constexpr = CONFIG.head_block
    head_dim = word(arguments, COMBINE.head_dim, CONFIG.alignment)
    group_heads = word(arguments, COMBINE.group_heads)
    kv_splits = word(arguments, COMBINE.kv_splits)
    width = dim(arguments, COMBINE.out, 1, CONFIG.alignment)
    stats_width = dim(arguments, COMBINE.stats, 2)
    first, last = tile_range(tile[0], word(arguments, COMBINE.tile_m),
                             dim(arguments, COMBINE.out, 0))
    d = tl.arange(0, HEAD_BLOCK)
    for first_pair in tl.range(0, (last - first) * group_heads, PAIRS):
        pair = first_pair + tl.arange(0, PAIRS)
        row = first + pair // group_heads
        query_head = tile[1] * group_heads + pair % group_heads
        there = row < last
        mask = there[:, None] & (d < head_dim)[None, :]
        stats = operand(arguments, COMBINE.stats, tl.float32)
        stats += row * kv_splits * stats_width + 2 * query_head
        partials = operand(arguments, COMBINE.partial, tl.float32)
        partials += row * kv_splits * width + query_head * head_dim
        value = tl.zeros([PAIRS, HEAD_BLOCK], tl.float32)
        largest = tl.full([PAIRS], float("-inf"), tl.float32)
        total = tl.zeros([PAIRS], tl.float32)
        for s in tl.range(0, kv_splits, num_stages=CONFIG.stages):
            split_max = tl.load(stats + s * stats_width, mask=there, other=float("-inf"))
            split_sum = tl.load(stats + s * stats_width + 1, mask=there, other=0)
            partial = tl.load((partials + s * width)[:, None] + d[None, :], mask=mask, other=0)
            new_largest = tl.maximum(largest, split_max)
            base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
            decay, share = tl.exp(largest - base), tl.exp(split_max - base)
            total = total * decay + split_sum * share
            value = value * decay[:, None] + partial * share[:, None]
            largest = new_largest
        total = tl.where(there, total, 1.0)
        out = operand(arguments, COMBINE.out, tl.float32) + row * width + query_head * head_dim
        tl.store(out[:, None] + d[None, :], value / total[:, None], mask=mask)
