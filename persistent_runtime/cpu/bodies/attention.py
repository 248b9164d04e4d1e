"""Bodies of attention: rotate and append keys, partial softmax over a split of the context,
combine."""

from __future__ import annotations

import numpy as np

from persistent_runtime.cpu.bodies.arguments import (
    FLOAT32,
    dim,
    float_parameter,
    is_given,
    kv_vector,
    operand,
    record_offsets,
    row_entry,
    tile_range,
)
from persistent_runtime.cpu.compile.registry import cpu_body
from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.blocks import maximum
from persistent_runtime.cpu.vectors.intrinsics import (
    address_of,
    advance,
    narrow,
    pointer_to,
    widen,
)
from persistent_runtime.cpu.vectors.numerics import (
    MINUS_INFINITY,
    ONE,
    ZERO,
    exp,
    inverse_rms,
    matmul_rows,
    row_at,
    sum_rows,
)
from persistent_runtime.functions import dense as device_functions

ROPE = record_offsets(device_functions.rope_append)
ATTENTION = record_offsets(device_functions.attention)
COMBINE = record_offsets(device_functions.attention_combine)

KV_BLOCK = device_functions.KV_BLOCK


@device_jit
def head_norm(arguments, offsets, weight):  # noqa: ANN201
    """A head's norm: (the operand of its weights, eps, what is added to each weight)."""
    return (weight, float_parameter(arguments, offsets.eps),
            float_parameter(arguments, offsets.norm_offset))


@device_jit
def head_factor(vector, head_dim, arguments, norm):
    """What a head's elements are multiplied by before the norm's weight; 1 without a norm."""
    weight, eps, _ = norm
    return inverse_rms(vector, head_dim, eps) if is_given(arguments, weight) else ONE


@device_jit
def normed(vector, d, factor, arguments, norm, like):
    """Element d of a head after its optional RMS norm."""
    weight, _, offset = norm
    if is_given(arguments, weight):
        return vector[d] * factor * (widen(operand(arguments, weight, like)[d]) + offset)
    return vector[d]


@device_jit
def rotate(vector, head_dim, cos, sin, arguments, norm, like, out, out_like):
    """out = rotate_half_rope(optional_norm(vector)): element d pairs with d + head_dim / 2."""
    factor = head_factor(vector, head_dim, arguments, norm)
    half = head_dim // 2
    for d in range(half):
        a = normed(vector, d, factor, arguments, norm, like)
        b = normed(vector, d + half, factor, arguments, norm, like)
        out[d] = narrow(a * cos[d] - b * sin[d], out_like)
        out[d + half] = narrow(b * cos[d] + a * sin[d], out_like)


@device_jit
def key_and_value(arguments, offsets, row, position, head, formats, k, v):
    """What the cache keeps of a row: k = rope(k), v, as they are stored; [head_dim] each.

    offsets: those of the device function's record that has the row's.
    """
    head_dim = arguments[offsets.head_dim]
    angles = position * (head_dim // 2)
    at = row * dim(arguments, offsets.k, 1) + head * head_dim
    rotate(advance(operand(arguments, offsets.k, FLOAT32), at), head_dim,
           advance(operand(arguments, offsets.cos, FLOAT32), angles),
           advance(operand(arguments, offsets.sin, FLOAT32), angles), arguments,
           head_norm(arguments, offsets, offsets.k_norm), formats.k_norm, k, formats.k_cache)
    value = advance(operand(arguments, offsets.v, FLOAT32), at)
    for d in range(head_dim):
        v[d] = narrow(value[d], formats.v_cache)


@cpu_body(device_functions.rope_append)
def rope_append(arguments, tile, step, scratch, formats):
    """k_cache, v_cache at the row's position = rope(k), v"""
    head = np.int64(tile[1])
    first, last = tile_range(tile[0], arguments[ROPE.tile_m], dim(arguments, ROPE.k, 0))
    for row in range(first, last):
        request = row_entry(arguments, ROPE.row_request, step, row)
        position = row_entry(arguments, ROPE.row_position, step, row)
        key_and_value(
            arguments, ROPE, row, position, head, formats,
            kv_vector(arguments, ROPE.k_cache, request, head, position, formats.k_cache),
            kv_vector(arguments, ROPE.v_cache, request, head, position, formats.v_cache))


@device_jit
def split_range(arguments, position, split):
    """[begin, end) of the positions that a row at `position` sees in this split; maybe empty."""
    window, kv_splits = arguments[ATTENTION.window], arguments[ATTENTION.kv_splits]
    visible_end = position + 1
    visible_begin = max(visible_end - window, 0) if window > 0 else 0
    piece = (visible_end - visible_begin + kv_splits - 1) // kv_splits
    begin = min(visible_begin + split * piece, visible_end)
    return begin, min(begin + piece, visible_end)


@device_jit
def fold_scores(scores, begin, end, length, scale, partial, head_dim, stats):
    """Turns a query vector's scores of a block into weights; it sees those in [begin, end). Others
    get weight 0, with which an infinite value, as with a mask in transformers, makes a NaN.

    scores: [length]; partial: [head_dim], what it has summed up so far; stats: the running maximum
    and sum of weights.
    """
    for t in range(0, min(begin, length)):
        scores[t] = ZERO
    for t in range(max(end, 0), length):
        scores[t] = ZERO
    if begin >= end:
        return
    seen = advance(scores, begin)
    old_max = stats[0]
    new_max = max(old_max, maximum(seen, end - begin) * scale)
    total = ZERO
    for t in range(end - begin):
        seen[t] = exp(seen[t] * scale - new_max)
        total += seen[t]
    if new_max > old_max:
        decay = exp(old_max - new_max)
        stats[0] = new_max
        stats[1] *= decay
        for d in range(head_dim):
            partial[d] *= decay
    stats[1] += total


@device_jit
def attend_block(arguments, step, row, rows, block, length, q, q_stride, vectors, k, v, following,
                 split, scratch, partial, partial_stride, stats, stats_stride):
    """Folds positions [block, block + length) into the running softmax of `vectors` query vectors:
    one of each of `rows` rows from `row` on, or several heads of a single row.

    q: [vectors, head_dim] at q_stride; k, v: [length, head_dim] from position `block` on;
    following: what is read next; partial: [vectors, head_dim]; stats: [vectors, 2].
    """
    head_dim, scale = arguments[ATTENTION.head_dim], float_parameter(arguments, ATTENTION.scale)
    matmul_rows(k, length, head_dim, q, q_stride, vectors, scratch, KV_BLOCK, keep=0, ahead=v)
    begin = end = np.int64(0)
    for i in range(vectors):
        if i < rows:
            position = row_entry(arguments, ATTENTION.row_position, step, row + i)
            begin, end = split_range(arguments, position, split)
            begin, end = max(begin - block, 0), min(end - block, length)
        fold_scores(advance(scratch, i * KV_BLOCK), begin, end, length, scale,
                    advance(partial, i * partial_stride), head_dim,
                    advance(stats, i * stats_stride))
    sum_rows(scratch, KV_BLOCK, v, length, head_dim, partial, partial_stride, vectors, following)


@device_jit
def rotate_queries(arguments, step, first, last, head, out, formats):
    """out = rope(q) of a KV head's query heads: [rows, group_heads, head_dim]."""
    head_dim, group_heads = arguments[ATTENTION.head_dim], arguments[ATTENTION.group_heads]
    norm, width = head_norm(arguments, ATTENTION, ATTENTION.q_norm), group_heads * head_dim
    for m in range(last - first):
        angles = row_entry(arguments, ATTENTION.row_position, step, first + m) * (head_dim // 2)
        cos = advance(operand(arguments, ATTENTION.cos, FLOAT32), angles)
        sin = advance(operand(arguments, ATTENTION.sin, FLOAT32), angles)
        q = advance(operand(arguments, ATTENTION.q, FLOAT32),
                    (first + m) * dim(arguments, ATTENTION.q, 1) + head * width)
        for g in range(group_heads):
            rotate(advance(q, g * head_dim), head_dim, cos, sin, arguments, norm, formats.q_norm,
                   advance(out, m * width + g * head_dim), FLOAT32)


@device_jit
def attend_own(arguments, step, row, position, q, head, split, scratch, own, partial, stats,
               formats):
    """Folds in the position of a row itself, whose key and value the cache will have later.

    q: [group_heads, head_dim]; own: room for both, as they will be stored.
    """
    head_dim, group_heads = arguments[ATTENTION.head_dim], arguments[ATTENTION.group_heads]
    k = pointer_to(address_of(own), formats.k_cache)
    v = pointer_to(address_of(advance(k, head_dim)), formats.v_cache)
    key_and_value(arguments, ATTENTION, row, position, head, formats, k, v)
    attend_block(arguments, step, row, rows=1, block=position, length=1, q=q, q_stride=head_dim,
                 vectors=group_heads, k=k, v=v, following=k, split=split, scratch=scratch,
                 partial=partial, partial_stride=head_dim, stats=stats, stats_stride=2)


@device_jit
def attend_rows(arguments, step, first, last, request, head, split, scratch, formats):
    """Rows [first, last) of one request, block by block of the context, so a block is hot for
    all of them; each row's running state stays in its `partial` and `stats`."""
    head_dim, group_heads = arguments[ATTENTION.head_dim], arguments[ATTENTION.group_heads]
    kv_splits, rows = arguments[ATTENTION.kv_splits], last - first
    width, stats_width = dim(arguments, ATTENTION.partial, 2), dim(arguments, ATTENTION.stats, 2)
    group_width = group_heads * head_dim
    q = advance(scratch, KV_BLOCK * max(arguments[ATTENTION.tile_m], group_heads))
    own = advance(q, arguments[ATTENTION.tile_m] * group_width)
    partial = advance(operand(arguments, ATTENTION.partial, FLOAT32),
                      (first * kv_splits + split) * width + head * group_width)
    stats = advance(operand(arguments, ATTENTION.stats, FLOAT32),
                    (first * kv_splits + split) * stats_width + head * group_heads * 2)
    partial_stride, stats_stride = kv_splits * width, kv_splits * stats_width

    context_begin, context_end = np.int64(2**62), np.int64(0)
    for m in range(rows):
        position = row_entry(arguments, ATTENTION.row_position, step, first + m)
        begin, end = split_range(arguments, position, split)
        if begin < end:
            context_begin, context_end = min(context_begin, begin), max(context_end, end)
        for d in range(group_width):
            partial[m * partial_stride + d] = ZERO
        for g in range(group_heads):
            stats[m * stats_stride + 2 * g] = MINUS_INFINITY
            stats[m * stats_stride + 2 * g + 1] = ZERO
    if context_begin >= context_end:
        return
    rotate_queries(arguments, step, first, last, head, q, formats)
    position = row_entry(arguments, ATTENTION.row_position, step, first)
    sees_own = is_given(arguments, ATTENTION.k) and context_end > position
    if sees_own:
        context_end = position

    for block in range(context_begin, context_end, KV_BLOCK):
        length = min(KV_BLOCK, context_end - block)
        k = kv_vector(arguments, ATTENTION.k_cache, request, head, block, formats.k_cache)
        v = kv_vector(arguments, ATTENTION.v_cache, request, head, block, formats.v_cache)
        next_k = row_at(k, head_dim, length)
        following = next_k if block + length < context_end else pointer_to(address_of(v),
                                                                           formats.k_cache)
        if rows == 1:
            attend_block(arguments, step, first, rows=1, block=block, length=length, q=q,
                         q_stride=head_dim, vectors=group_heads, k=k, v=v, following=following,
                         split=split, scratch=scratch, partial=partial, partial_stride=head_dim,
                         stats=stats, stats_stride=2)
        else:
            for g in range(group_heads):
                attend_block(arguments, step, first, rows=rows, block=block, length=length,
                             q=advance(q, g * head_dim), q_stride=group_width, vectors=rows, k=k,
                             v=v, following=following, split=split, scratch=scratch,
                             partial=advance(partial, g * head_dim),
                             partial_stride=partial_stride, stats=advance(stats, 2 * g),
                             stats_stride=stats_stride)
    if sees_own:
        attend_own(arguments, step, first, position, q, head, split, scratch, own, partial, stats,
                   formats)


@cpu_body(device_functions.attention)
def attention(arguments, tile, step, scratch, formats):
    """partial, stats = unnormalised softmax(rope(q) @ k.T * scale) @ v over one split"""
    first, last = tile_range(tile[0], arguments[ATTENTION.tile_m], dim(arguments, ATTENTION.q, 0))
    head, split = np.int64(tile[1]), np.int64(tile[2])
    while first < last:
        request = row_entry(arguments, ATTENTION.row_request, step, first)
        stop = first + 1
        while stop < last and row_entry(arguments, ATTENTION.row_request, step, stop) == request:
            stop += 1
        attend_rows(arguments, step, first, stop, request, head, split, scratch, formats)
        first = stop


@cpu_body(device_functions.attention_combine)
def attention_combine(arguments, tile, step, scratch, formats):
    """out = Σ_s partial[s] * exp(max[s] - max) / Σ_s sum[s] * exp(max[s] - max)"""
    head_dim, group_heads = arguments[COMBINE.head_dim], arguments[COMBINE.group_heads]
    kv_splits, width = arguments[COMBINE.kv_splits], dim(arguments, COMBINE.out, 1)
    first, last = tile_range(tile[0], arguments[COMBINE.tile_m], dim(arguments, COMBINE.out, 0))
    heads_begin = np.int64(tile[1]) * group_heads
    stats_width = dim(arguments, COMBINE.stats, 2)
    for row in range(first, last):
        stats = advance(operand(arguments, COMBINE.stats, FLOAT32), row * kv_splits * stats_width)
        partials = advance(operand(arguments, COMBINE.partial, FLOAT32), row * kv_splits * width)
        out = advance(operand(arguments, COMBINE.out, FLOAT32), row * width)
        for head in range(heads_begin, heads_begin + group_heads):
            top = MINUS_INFINITY
            for s in range(kv_splits):
                top = max(top, stats[s * stats_width + 2 * head])
            total = ZERO
            for s in range(kv_splits):
                at = s * stats_width + 2 * head
                total += stats[at + 1] * exp(stats[at] - top)
            for s in range(kv_splits):
                share = exp(stats[s * stats_width + 2 * head] - top) / total
                for d in range(head * head_dim, (head + 1) * head_dim):
                    value = partials[s * width + d] * share
                    out[d] = value if s == 0 else out[d] + value
