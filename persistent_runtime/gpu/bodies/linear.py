"""Bodies of the matrix products: a matrix-vector path for one row, a tensor-core path for many.

Both stream the tile's weights once from memory, all of its columns block after block in one flat
loop, so that loads of the next block are in flight while one is being reduced. RMS norm costs no
pass of its own: rows are multiplied by the norm's weight as they are read, squares are summed on
the way, and the factor 1 / rms multiplies the finished sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from persistent_runtime.functions import dense as device_functions
from persistent_runtime.functions.activations import SILU
from persistent_runtime.gpu.bodies.arguments import (
    LOGIT_BASE,
    STEP_INDEX,
    dim,
    float_parameter,
    is_given,
    load_weights,
    operand,
    record_offsets,
    tile_range,
    weight_row,
    word,
)
from persistent_runtime.gpu.bodies.dot import widened_dot
from persistent_runtime.gpu.bodies.epilogue import activate, finish
from persistent_runtime.gpu.bodies.pointwise import norm_factors
from persistent_runtime.gpu.compile.registry import Shape, gpu_body
from persistent_runtime.gpu.compile.stored import Stored
from persistent_runtime.gpu.ring.pieces import Period, can_stream, period_of
from persistent_runtime.gpu.ring.ring import PIECE_COUNT
from persistent_runtime.gpu.ring.streamed import multiply_streamed
from persistent_runtime.gpu.target import RowBlock

NORM_LINEAR = record_offsets(device_functions.norm_linear)
LINEAR_RESIDUAL = record_offsets(device_functions.linear_residual)
GATE_UP = record_offsets(device_functions.norm_gate_up)
LM_HEAD = record_offsets(device_functions.norm_lm_head)
ARGMAX_BLOCK = tl.constexpr(1024)
MAX_STAGES = 8
WIDE_BYTES = 4  # of an element as a block's loader may give it
HELD_BYTES = 32 * 1024  # of weights that registers of eight warps hold beside their sums


@dataclass(frozen=True, slots=True)
class LinearConfiguration:
    """Block sizes: of weights held at once by the one-row path, and of the tensor-core path."""

    formats: Any  # of the operands, by their names
    weights: tuple[Stored, ...]  # of the one or two matrices
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


def linear_configuration(shape: Shape, block: RowBlock, *names: str) -> LinearConfiguration:
    """Blocks for tiles that read matrices of these operands at once. block: of the one-row path."""
    weights = tuple(getattr(shape.formats, name) for name in names)
    matrices = len(weights)
    lengths, columns = shape.parameter("in_features"), max(shape.parameter("tile_n"))
    target, widest = shape.target, triton.next_power_of_2(columns)
    row_k = shape.largest_divisor(lengths, block.depth)
    # what registers hold of an element: blocks are unpacked on their way there
    weight_bytes = max(WIDE_BYTES if w.load else w.block_bytes for w in weights)
    elements = min(block.elements, HELD_BYTES // weight_bytes)
    row_n = max(min(elements // matrices // row_k, widest), 1)
    ring = target.ring_pieces if can_stream(shape.calls) else 0
    iteration_bytes = matrices * row_n * row_k * weight_bytes
    return LinearConfiguration(
        shape.formats, weights, shape.interpreted, shape.is_bound("bias"), math.gcd(16, *lengths),
        row_n, row_k, min(1 + triton.cdiv(block.bytes_in_flight, iteration_bytes), MAX_STAGES),
        target.tensor_rows, max(min(target.tensor_columns // matrices, widest), 16),
        target.tensor_depth, target.tensor_stages, ring,
        tuple(period_of(length) for length in lengths) if ring else (),
        shape.constant("norm_offset", 0.0), int(shape.constant("activation", SILU)),
        shape.constant("multiplier", 1.0))


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
        mask = mask_n[:, None] & mask_k[None, :]
        w = load_weights(weights[0], n[:, None], k[None, :], length, mask, CONFIG.weights[0])
        value = tl.load(x + k, mask=mask_k, other=0, eviction_policy="evict_last")
        if NORMED:
            squares += value * value
            value *= norm_factors(tl.load(norm + k, mask=mask_k, other=0,
                                          eviction_policy="evict_last"), CONFIG.norm_offset)
        total += w.to(tl.float32) * value[None, :]
        if GATED:
            w = load_weights(weights[1], n[:, None], k[None, :], length, mask, CONFIG.weights[1])
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
            mask = mask_n[None, :] & mask_k[:, None]
            w = load_weights(weights[0], n[None, :], k[:, None], length, mask, CONFIG.weights[0])
            total = widened_dot(value, w, total, CONFIG)
            if GATED:
                w = load_weights(weights[1], n[None, :], k[:, None], length, mask,
                                 CONFIG.weights[1])
                up_total = widened_dot(value, w, up_total, CONFIG)
        factor = tl.full([BLOCK_M, 1], 1.0, tl.float32)
        if NORMED:
            factor = (1.0 / tl.sqrt(squares / length.to(tl.float32) + eps))[:, None]
        finish(total, up_total, factor, biases, out + m[:, None] * out_stride + n[None, :],
               n[None, :], mask_n[None, :], mask_m[:, None] & mask_n[None, :], GATED, ACCUMULATE,
               CONFIG)


@triton.jit
def multiply(inputs, weights, biases, out, extents, tile, step, CONFIG: tl.constexpr,
             NORMED: tl.constexpr = False, GATED: tl.constexpr = False,
             ACCUMULATE: tl.constexpr = False, GATHERED: tl.constexpr = False):
    """One tile of act(rms_norm(x) @ weight.T + bias), added to or stored in out.

    inputs: (x, x_rows, norm, eps), x_rows pointing to the row of x for every m, looked at only if
    GATHERED, norm and eps only if NORMED. weights, biases: from the tile's first column on, of the
    second matrix too if GATED; see `bias_at`. out: (pointer to all of it, stride). extents:
    (length, first row, last row, first column, last column), one past what is last.
    """
    x, x_rows, norm, eps = inputs
    length, first, last, begin, end = extents
    # from here on, everything is an int32 offset from the tile's corner
    corner = out[0] + (first * out[1] + begin)
    if GATHERED:
        x_rows += first
    else:
        x += first * length
    rows, columns = last - first, end - begin
    alone = rows == 1
    if CONFIG.ring:
        alone = tile[PIECE_COUNT] > 0
    if alone:
        if GATHERED:
            x += tl.load(x_rows) * length
        if CONFIG.ring:
            for k in tl.static_range(len(CONFIG.periods)):
                multiply_streamed(x, norm, biases, corner, length, columns, eps, tile,
                                  step[STEP_INDEX], NORMED=NORMED, GATED=GATED,
                                  ACCUMULATE=ACCUMULATE, K=k, ACTIVATE=activate, CONFIG=CONFIG)
        else:
            multiply_row(x, norm, weights, biases, corner, length, columns, eps, NORMED=NORMED,
                         GATED=GATED, ACCUMULATE=ACCUMULATE, CONFIG=CONFIG)
    else:
        multiply_rows(x, x_rows, norm, weights, biases, corner, out[1], length, rows, columns, eps,
                      NORMED=NORMED, GATED=GATED, ACCUMULATE=ACCUMULATE, GATHERED=GATHERED,
                      CONFIG=CONFIG)


@triton.jit
def bias_at(arguments, OFFSET: tl.constexpr, n, STORED: tl.constexpr):
    """(pointer to element n of a bias, whether the call has it)"""
    return operand(arguments, OFFSET, STORED.element) + n, is_given(arguments, OFFSET)


@gpu_body(device_functions.norm_linear,
          configure=lambda shape: linear_configuration(shape, shape.target.projection, "weight"))
@triton.jit(noinline=True)
def norm_linear(arguments, tile, step, CONFIG: tl.constexpr):
    """out = rms_norm(x) @ weight.T + bias"""
    length = word(arguments, NORM_LINEAR.in_features, CONFIG.alignment)
    first, last = tile_range(tile[0], word(arguments, NORM_LINEAR.tile_m),
                             dim(arguments, NORM_LINEAR.x, 0))
    begin, end = tile_range(tile[1], word(arguments, NORM_LINEAR.tile_n),
                            dim(arguments, NORM_LINEAR.weight, 0))
    x = operand(arguments, NORM_LINEAR.x, tl.float32)
    norm = operand(arguments, NORM_LINEAR.norm_weight, CONFIG.formats.norm_weight.element)
    weight = weight_row(arguments, NORM_LINEAR.weight, begin, length, CONFIG.formats.weight)
    out = (operand(arguments, NORM_LINEAR.out, tl.float32), dim(arguments, NORM_LINEAR.out, 1))
    multiply((x, x, norm, float_parameter(arguments, NORM_LINEAR.eps)), (weight,),
             bias_at(arguments, NORM_LINEAR.bias, begin, CONFIG.formats.bias), out,
             (length, first, last, begin, end), tile, step, CONFIG, NORMED=True)


@gpu_body(device_functions.linear_residual,
          configure=lambda shape: linear_configuration(shape, shape.target.residual, "weight"))
@triton.jit(noinline=True)
def linear_residual(arguments, tile, step, CONFIG: tl.constexpr):
    """residual += (x @ weight.T + bias) * multiplier"""
    length = word(arguments, LINEAR_RESIDUAL.in_features, CONFIG.alignment)
    first, last = tile_range(tile[0], word(arguments, LINEAR_RESIDUAL.tile_m),
                             dim(arguments, LINEAR_RESIDUAL.x, 0))
    begin, end = tile_range(tile[1], word(arguments, LINEAR_RESIDUAL.tile_n),
                            dim(arguments, LINEAR_RESIDUAL.weight, 0))
    x = operand(arguments, LINEAR_RESIDUAL.x, tl.float32)
    weight = weight_row(arguments, LINEAR_RESIDUAL.weight, begin, length, CONFIG.formats.weight)
    residual = (operand(arguments, LINEAR_RESIDUAL.residual, tl.float32),
                dim(arguments, LINEAR_RESIDUAL.residual, 1))
    multiply((x, x, x, 0.0), (weight,),
             bias_at(arguments, LINEAR_RESIDUAL.bias, begin, CONFIG.formats.bias), residual,
             (length, first, last, begin, end), tile, step, CONFIG, ACCUMULATE=True)


@gpu_body(device_functions.norm_gate_up,
          configure=lambda shape: linear_configuration(shape, shape.target.gated, "gate_weight",
                                                       "up_weight"))
@triton.jit(noinline=True)
def norm_gate_up(arguments, tile, step, CONFIG: tl.constexpr):
    """out = act(y @ gate_weight.T + gate_bias) * (y @ up_weight.T + up_bias), y = rms_norm(x)"""
    length = word(arguments, GATE_UP.in_features, CONFIG.alignment)
    first, last = tile_range(tile[0], word(arguments, GATE_UP.tile_m), dim(arguments, GATE_UP.x, 0))
    begin, end = tile_range(tile[1], word(arguments, GATE_UP.tile_n),
                            dim(arguments, GATE_UP.gate_weight, 0))
    x = operand(arguments, GATE_UP.x, tl.float32)
    norm = operand(arguments, GATE_UP.norm_weight, CONFIG.formats.norm_weight.element)
    weights = (weight_row(arguments, GATE_UP.gate_weight, begin, length,
                          CONFIG.formats.gate_weight),
               weight_row(arguments, GATE_UP.up_weight, begin, length, CONFIG.formats.up_weight))
    biases = (bias_at(arguments, GATE_UP.gate_bias, begin, CONFIG.formats.gate_bias)
              + bias_at(arguments, GATE_UP.up_bias, begin, CONFIG.formats.up_bias))
    out = (operand(arguments, GATE_UP.out, tl.float32), dim(arguments, GATE_UP.out, 1))
    multiply((x, x, norm, float_parameter(arguments, GATE_UP.eps)), weights, biases, out,
             (length, first, last, begin, end), tile, step, CONFIG, NORMED=True, GATED=True)


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
        tl.store(tile_argmax + m * tiles, tl.min(tl.where(best == top, place, end - 1), axis=0))


@gpu_body(device_functions.norm_lm_head,
          configure=lambda shape: linear_configuration(shape, shape.target.head, "weight"))
@triton.jit(noinline=True)
def norm_lm_head(arguments, tile, step, CONFIG: tl.constexpr):
    """logits = rms_norm(x[logit_row]) @ weight.T, and each row's best column within the tile"""
    length = word(arguments, LM_HEAD.in_features, CONFIG.alignment)
    vocab = dim(arguments, LM_HEAD.logits, 1)
    first, last = tile_range(tile[0], word(arguments, LM_HEAD.tile_m),
                             dim(arguments, LM_HEAD.logits, 0))
    begin, end = tile_range(tile[1], word(arguments, LM_HEAD.tile_n), vocab)
    x = operand(arguments, LM_HEAD.x, tl.float32)
    rows = operand(arguments, LM_HEAD.logit_row, tl.int32) + step[LOGIT_BASE]
    norm = operand(arguments, LM_HEAD.norm_weight, CONFIG.formats.norm_weight.element)
    weight = weight_row(arguments, LM_HEAD.weight, begin, length, CONFIG.formats.weight)
    multiply((x, rows, norm, float_parameter(arguments, LM_HEAD.eps)), (weight,), (),
             (operand(arguments, LM_HEAD.logits, tl.float32), vocab),
             (length, first, last, begin, end), tile, step, CONFIG, NORMED=True, GATHERED=True)
    tl.debug_barrier()  # the logits of this tile are read back, by other threads
    record_best(arguments, tile[1], first, last, begin, end)
