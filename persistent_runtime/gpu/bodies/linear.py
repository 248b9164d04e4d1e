"""Bodies of the matrix products: a matrix-vector path for one row, a tensor-core path for many.

Both stream the tile's weights once from memory, all of its columns block after block in one flat
loop, so that loads of the next block are in flight while one is being reduced. RMS norm costs no
pass of its own: rows are multiplied by the norm's weight as they are read, squares are summed on
the way, and the factor 1 / rms multiplies the finished sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import triton
import triton.language as tl

from persistent_runtime.functions import dense as device_functions
from persistent_runtime.functions.activations import SILU
from persistent_runtime.gpu.bodies.arguments import (
    STREAM_COUNT,
    dim,
    float_parameter,
    operand,
    record_offsets,
    tile_range,
    word,
)
from persistent_runtime.gpu.bodies.epilogue import finish
from persistent_runtime.gpu.bodies.pointwise import norm_factors
from persistent_runtime.gpu.compile.registry import Shape, gpu_body
from persistent_runtime.gpu.ring.streamed import multiply_streamed
from persistent_runtime.gpu.target import RowBlock
from persistent_runtime.rows.weight_pieces import Period, can_stream, period_of

NORM_LINEAR = record_offsets(device_functions.norm_linear)
LINEAR_RESIDUAL = record_offsets(device_functions.linear_residual)
GATE_UP = record_offsets(device_functions.norm_gate_up)
LM_HEAD = record_offsets(device_functions.norm_lm_head)
ARGMAX_BLOCK = tl.constexpr(1024)
MAX_STAGES = 8
HELD_BYTES = 32 * 1024  # of weights that registers of eight warps hold beside their sums
TF32_BITS = tl.constexpr(-(2**13))  # sign, exponent and the ten leading bits of the fraction


@dataclass(frozen=True, slots=True)
class LinearConfiguration:
    """Block sizes: of weights held at once by the one-row path, and of the tensor-core path."""

    weight: tl.dtype
    interpreted: bool
    biased: bool  # whether any call has a bias
    alignment: int  # rows of weights and activations start at multiples of so many elements
    row_n: int
    row_k: int
    row_stages: int
    block_m: int
    block_n: int
    block_k: int
    stages: int
    ring: int  # slots of the ring that brings the weights of one-row tiles; 0 if none does
    periods: tuple[Period, ...]  # of the lengths that come through it
    norm_offset: float  # added to each weight of the norm
    activation: int  # one of functions/activations.py
    multiplier: float  # of what is added to the residual


def linear_configuration(shape: Shape, block: RowBlock, matrices: int = 1) -> LinearConfiguration:
    """Blocks for tiles that read `matrices` weight matrices at once. block: of the one-row path."""
    lengths, columns = shape.parameter("in_features"), max(shape.parameter("tile_n"))
    target, widest = shape.target, triton.next_power_of_2(columns)
    row_k = shape.largest_divisor(lengths, block.depth)
    weight_bytes = shape.weight.primitive_bitwidth // 8
    elements = min(block.elements, HELD_BYTES // weight_bytes)
    row_n = max(min(elements // matrices // row_k, widest), 1)
    ring = target.ring_pieces if can_stream(shape.calls) else 0
    iteration_bytes = matrices * row_n * row_k * weight_bytes
    return LinearConfiguration(
        shape.weight, shape.interpreted, shape.is_bound("bias"), math.gcd(16, *lengths),
        row_n, row_k, min(1 + triton.cdiv(block.bytes_in_flight, iteration_bytes), MAX_STAGES),
        target.tensor_rows, max(min(target.tensor_columns // matrices, widest), 16),
        target.tensor_depth, target.tensor_stages, ring,
        tuple(period_of(length) for length in lengths) if ring else (),
        shape.constant("norm_offset", 0.0), int(shape.constant("activation", SILU)),
        shape.constant("multiplier", 1.0))


@triton.jit
def widened_dot(a, b, total, CONFIG: tl.constexpr):
    """total + a @ b with a in float32 precision; b has the weights' type. [M, K] @ [K, N]

    bfloat16 keeps eight bits, so a is split in two parts: weights are what has to be read, and
    the second product costs no memory traffic.
    """
    if CONFIG.interpreted:
        total = tl.dot(a, b.to(tl.float32), total, input_precision="ieee")
    elif CONFIG.weight == tl.bfloat16:
        high = a.to(tl.bfloat16)
        low = (a - high.to(tl.float32)).to(tl.bfloat16)
        total += tl.dot(low, b) + tl.dot(high, b)
    elif CONFIG.weight == tl.float16:
        # float16 has too few exponents for rows before their norm; tf32 holds float16 exactly
        high = (a.to(tl.int32, bitcast=True) & TF32_BITS).to(tl.float32, bitcast=True)
        wide = b.to(tl.float32)
        total += tl.dot(a - high, wide, input_precision="tf32")
        total += tl.dot(high, wide, input_precision="tf32")
    else:
        total = tl.dot(a, b, total, input_precision="ieee")
    return total


@triton.jit
def multiply_row(x, norm, weights, biases, out, length, columns, eps, NORMED: tl.constexpr,
                 GATED: tl.constexpr, ACCUMULATE: tl.constexpr, CONFIG: tl.constexpr):
    """out[n] for n in [0, columns): one row x [length] against rows n of the weights."""
    ROW_N: tl.constexpr = CONFIG.row_n
    ROW_K: tl.constexpr = CONFIG.row_k
    UP_N: tl.constexpr = CONFIG.row_n if GATED else 1
    UP_K: tl.constexpr = CONFIG.row_k if GATED else 1
    depths = tl.cdiv(length, ROW_K)
    total = tl.zeros([ROW_N, ROW_K], tl.float32)
    up_total = tl.zeros([UP_N, UP_K], tl.float32)
    squares = tl.zeros([ROW_K], tl.float32)
    for iteration in tl.range(0, tl.cdiv(columns, ROW_N) * depths, num_stages=CONFIG.row_stages):
        depth = iteration % depths
        n = iteration // depths * ROW_N + tl.arange(0, ROW_N)
        k = depth * ROW_K + tl.arange(0, ROW_K)
        mask_k, mask_n = k < length, n < columns
        at = n[:, None] * length + k[None, :]
        mask = mask_n[:, None] & mask_k[None, :]
        w = tl.load(weights[0] + at, mask=mask, other=0, eviction_policy="evict_first")
        value = tl.load(x + k, mask=mask_k, other=0, eviction_policy="evict_last")
        if NORMED:
            squares += value * value
            value *= norm_factors(tl.load(norm + k, mask=mask_k, other=0,
                                          eviction_policy="evict_last"), CONFIG.norm_offset)
        total += w.to(tl.float32) * value[None, :]
        if GATED:
            w = tl.load(weights[1] + at, mask=mask, other=0, eviction_policy="evict_first")
            up_total += w.to(tl.float32) * value[None, :]
        if depth == depths - 1:
            factor = 1.0
            if NORMED:
                factor = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / length.to(tl.float32) + eps)
            finish(tl.sum(total, axis=1), tl.sum(up_total, axis=1), factor, biases, out + n, n,
                   mask_n, mask_n, GATED, ACCUMULATE, CONFIG)
            total = tl.zeros_like(total)
            up_total = tl.zeros_like(up_total)
            squares = tl.zeros_like(squares)


@triton.jit
def multiply_rows(x, x_rows, norm, weights, biases, out, out_stride, length, rows, columns, eps,
                  NORMED: tl.constexpr, GATED: tl.constexpr, ACCUMULATE: tl.constexpr,
                  GATHERED: tl.constexpr, CONFIG: tl.constexpr):
    """out[m, n] for m in [0, rows), n in [0, columns); x_rows names row m of x if GATHERED."""
    BLOCK_M: tl.constexpr = CONFIG.block_m
    BLOCK_N: tl.constexpr = CONFIG.block_n
    BLOCK_K: tl.constexpr = CONFIG.block_k
    UP_M: tl.constexpr = CONFIG.block_m if GATED else 1
    UP_N: tl.constexpr = CONFIG.block_n if GATED else 1
    m_blocks = tl.cdiv(rows, BLOCK_M)
    for block in tl.range(0, tl.cdiv(columns, BLOCK_N) * m_blocks):
        m = block % m_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
        n = block // m_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_m, mask_n = m < rows, n < columns
        row = m
        if GATHERED:
            row = tl.load(x_rows + m, mask=mask_m, other=0)
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        up_total = tl.zeros([UP_M, UP_N], tl.float32)
        squares = tl.zeros([BLOCK_M], tl.float32)
        for k0 in tl.range(0, length, BLOCK_K, num_stages=CONFIG.stages):
            k = k0 + tl.arange(0, BLOCK_K)
            mask_k = k < length
            value = tl.load(x + row[:, None] * length + k[None, :],
                            mask=mask_m[:, None] & mask_k[None, :], other=0,
                            eviction_policy="evict_last")
            if NORMED:
                squares += tl.sum(value * value, axis=1)
                value *= norm_factors(tl.load(norm + k, mask=mask_k, other=0,
                                              eviction_policy="evict_last"),
                                      CONFIG.norm_offset)[None, :]
            at = n[None, :] * length + k[:, None]
            mask = mask_n[None, :] & mask_k[:, None]
            w = tl.load(weights[0] + at, mask=mask, other=0, eviction_policy="evict_first")
            total = widened_dot(value, w, total, CONFIG)
            if GATED:
                w = tl.load(weights[1] + at, mask=mask, other=0, eviction_policy="evict_first")
                up_total = widened_dot(value, w, up_total, CONFIG)
        factor = tl.full([BLOCK_M, 1], 1.0, tl.float32)
        if NORMED:
            factor = (1.0 / tl.sqrt(squares / length.to(tl.float32) + eps))[:, None]
        finish(total, up_total, factor, biases, out + m[:, None] * out_stride + n[None, :],
               n[None, :], mask_n[None, :], mask_m[:, None] & mask_n[None, :], GATED, ACCUMULATE,
               CONFIG)


@triton.jit
def multiply(x, x_rows, norm, weight, up_weight, bias, up_bias, out, out_stride, length, first,
             last, begin, end, eps, tile, step, NORMED: tl.constexpr, GATED: tl.constexpr,
             ACCUMULATE: tl.constexpr, GATHERED: tl.constexpr, CONFIG: tl.constexpr):
    """One tile of act(rms_norm(x) @ weight.T + bias), added to or stored in out.

    x_rows: pointer to the row of x for every m, looked at only if GATHERED.
    """
    # from here on, everything is an int32 offset from the tile's corner
    corner = begin.to(tl.int64) * length
    weights = (weight + corner, up_weight + corner)
    biases = (bias + begin, bias.to(tl.int64) != 0, up_bias + begin, up_bias.to(tl.int64) != 0)
    out += first * out_stride + begin
    if GATHERED:
        x_rows += first
    else:
        x += first * length
    rows, columns = last - first, end - begin
    alone = rows == 1
    if CONFIG.ring:
        alone = tile[STREAM_COUNT] > 0
    if alone:
        if GATHERED:
            x += tl.load(x_rows) * length
        if CONFIG.ring:
            for k in tl.static_range(len(CONFIG.periods)):
                multiply_streamed(x, norm, biases, out, length, columns, eps, tile, step, NORMED,
                                  GATED, ACCUMULATE, k, CONFIG)
        else:
            multiply_row(x, norm, weights, biases, out, length, columns, eps, NORMED, GATED,
                         ACCUMULATE, CONFIG)
    else:
        multiply_rows(x, x_rows, norm, weights, biases, out, out_stride, length, rows, columns,
                      eps, NORMED, GATED, ACCUMULATE, GATHERED, CONFIG)


@gpu_body(device_functions.norm_linear,
          configure=lambda shape: linear_configuration(shape, shape.target.projection))
@triton.jit(noinline=True)
def norm_linear(arguments, tile, step, CONFIG: tl.constexpr):
    """out = rms_norm(x) @ weight.T + bias"""
    length = word(arguments, NORM_LINEAR.in_features, CONFIG.alignment)
    first, last = tile_range(tile[0], word(arguments, NORM_LINEAR.tile_m),
                             dim(arguments, NORM_LINEAR.x, 0))
    begin, end = tile_range(tile[1], word(arguments, NORM_LINEAR.tile_n),
                            dim(arguments, NORM_LINEAR.weight, 0))
    x = operand(arguments, NORM_LINEAR.x, tl.float32)
    weight = operand(arguments, NORM_LINEAR.weight, CONFIG.weight)
    bias = operand(arguments, NORM_LINEAR.bias, CONFIG.weight)
    multiply(x, x, operand(arguments, NORM_LINEAR.norm_weight, CONFIG.weight), weight, weight,
             bias, bias, operand(arguments, NORM_LINEAR.out, tl.float32),
             dim(arguments, NORM_LINEAR.out, 1), length,
             first, last, begin, end, float_parameter(arguments, NORM_LINEAR.eps),
             tile, step, True, False, False, False, CONFIG)


@gpu_body(device_functions.linear_residual,
          configure=lambda shape: linear_configuration(shape, shape.target.residual))
@triton.jit(noinline=True)
def linear_residual(arguments, tile, step, CONFIG: tl.constexpr):
    """residual += (x @ weight.T + bias) * multiplier"""
    length = word(arguments, LINEAR_RESIDUAL.in_features, CONFIG.alignment)
    first, last = tile_range(tile[0], word(arguments, LINEAR_RESIDUAL.tile_m),
                             dim(arguments, LINEAR_RESIDUAL.x, 0))
    begin, end = tile_range(tile[1], word(arguments, LINEAR_RESIDUAL.tile_n),
                            dim(arguments, LINEAR_RESIDUAL.weight, 0))
    x = operand(arguments, LINEAR_RESIDUAL.x, tl.float32)
    weight = operand(arguments, LINEAR_RESIDUAL.weight, CONFIG.weight)
    bias = operand(arguments, LINEAR_RESIDUAL.bias, CONFIG.weight)
    multiply(x, x, weight, weight, weight, bias, bias,
             operand(arguments, LINEAR_RESIDUAL.residual, tl.float32),
             dim(arguments, LINEAR_RESIDUAL.residual, 1),
             length, first, last, begin, end, 0.0, tile, step,
             False, False, True, False, CONFIG)


@gpu_body(device_functions.norm_gate_up,
          configure=lambda shape: linear_configuration(shape, shape.target.gated, 2))
@triton.jit(noinline=True)
def norm_gate_up(arguments, tile, step, CONFIG: tl.constexpr):
    """out = act(y @ gate_weight.T + gate_bias) * (y @ up_weight.T + up_bias), y = rms_norm(x)"""
    length = word(arguments, GATE_UP.in_features, CONFIG.alignment)
    first, last = tile_range(tile[0], word(arguments, GATE_UP.tile_m), dim(arguments, GATE_UP.x, 0))
    begin, end = tile_range(tile[1], word(arguments, GATE_UP.tile_n),
                            dim(arguments, GATE_UP.gate_weight, 0))
    x = operand(arguments, GATE_UP.x, tl.float32)
    multiply(x, x, operand(arguments, GATE_UP.norm_weight, CONFIG.weight),
             operand(arguments, GATE_UP.gate_weight, CONFIG.weight),
             operand(arguments, GATE_UP.up_weight, CONFIG.weight),
             operand(arguments, GATE_UP.gate_bias, CONFIG.weight),
             operand(arguments, GATE_UP.up_bias, CONFIG.weight),
             operand(arguments, GATE_UP.out, tl.float32), dim(arguments, GATE_UP.out, 1),
             length, first, last, begin, end,
             float_parameter(arguments, GATE_UP.eps), tile, step, True, True, False, False, CONFIG)


@triton.jit
def record_best(arguments, tile_n, first, last, begin, end):
    """tile_max, tile_argmax [:, tile_n] of rows [first, last): the best of columns [begin, end)."""
    vocab, tiles = dim(arguments, LM_HEAD.logits, 1), dim(arguments, LM_HEAD.tile_max, 1)
    logits = operand(arguments, LM_HEAD.logits, tl.float32)
    tile_max = operand(arguments, LM_HEAD.tile_max, tl.float32) + tile_n
    tile_argmax = operand(arguments, LM_HEAD.tile_argmax, tl.int32) + tile_n
    for m in tl.range(first, last):
        best = tl.full([ARGMAX_BLOCK], float("-inf"), tl.float32)
        place = tl.zeros([ARGMAX_BLOCK], tl.int32) + begin
        odd = tl.zeros([ARGMAX_BLOCK], tl.int32)
        for n0 in tl.range(begin, end, ARGMAX_BLOCK):
            n = n0 + tl.arange(0, ARGMAX_BLOCK)
            value = tl.load(logits + m * vocab + n, mask=n < end, other=float("-inf"))
            place = tl.where(value > best, n, place)
            best = tl.where(value > best, value, best)
            # NaN is not below infinity either
            odd += ((n < end) & ((tl.abs(value) < float("inf")) == 0)).to(tl.int32)
        top = tl.max(best, axis=0)
        is_finite = tl.sum(odd, axis=0) == 0
        tl.store(tile_max + m * tiles, tl.where(is_finite, top, float("nan")))
        # the lowest column wins a tie
        tl.store(tile_argmax + m * tiles,
                 tl.min(tl.where(best == top, place, end - 1), axis=0))


@gpu_body(device_functions.norm_lm_head,
          configure=lambda shape: linear_configuration(shape, shape.target.head))
@triton.jit(noinline=True)
def norm_lm_head(arguments, tile, step, CONFIG: tl.constexpr):
    """logits = rms_norm(x[logit_row]) @ weight.T, and each row's best column within the tile"""
    length = word(arguments, LM_HEAD.in_features, CONFIG.alignment)
    vocab = dim(arguments, LM_HEAD.logits, 1)
    first, last = tile_range(tile[0], word(arguments, LM_HEAD.tile_m),
                             dim(arguments, LM_HEAD.logits, 0))
    begin, end = tile_range(tile[1], word(arguments, LM_HEAD.tile_n), vocab)
    weight = operand(arguments, LM_HEAD.weight, CONFIG.weight)
    logits = operand(arguments, LM_HEAD.logits, tl.float32)
    rows = operand(arguments, LM_HEAD.logit_row, tl.int32) + step[2]
    multiply(operand(arguments, LM_HEAD.x, tl.float32), rows,
             operand(arguments, LM_HEAD.norm_weight, CONFIG.weight), weight, weight, weight,
             weight, logits, vocab, length, first, last, begin, end,
             float_parameter(arguments, LM_HEAD.eps), tile, step, True, False, False, True,
             CONFIG)
    tl.debug_barrier()  # the logits of this tile are read back, by other threads
    record_best(arguments, tile[1], first, last, begin, end)
