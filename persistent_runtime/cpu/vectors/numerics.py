"""The arithmetic that bodies share: exponential, RMS norm, matrix products, weighted row sums.

Pointers are to row-major memory; strides count elements. Everything accumulates in float32.
"""

from __future__ import annotations

import math

import numpy as np

from persistent_runtime.cpu.jit import device_jit, exact_jit
from persistent_runtime.cpu.vectors.block_types import items
from persistent_runtime.cpu.vectors.blocks import (
    WHOLE_SHARE,
    dot_block,
    maximum,
    sum_rows_block,
)
from persistent_runtime.cpu.vectors.emit import FETCH_AHEAD_BYTES, LANES, MANY_REGISTERS
from persistent_runtime.cpu.vectors.intrinsics import (
    address_of,
    advance,
    float32_bits,
    float32_from_bits,
    item_bytes,
    keep_out_of_line,
    widen,
)

ZERO, ONE = np.float32(0), np.float32(1)
INFINITY, MINUS_INFINITY = np.float32(np.inf), np.float32(-np.inf)

# exp: x = n * ln 2 + r, |r| <= ln 2 / 2; minimax polynomial of Cephes expf.
LOG2_E = np.float32(math.log2(math.e))
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
ROUND_TO_INTEGER = np.float32(1.5 * 2**23)  # adding it leaves n in the low bits of the mantissa
EXPONENT_BIAS, MANTISSA_BITS = np.int32(127), np.int32(23)
EXPONENT = np.int32(0x7F800000)  # all its bits are set where a float32 is no finite number
EXP_LOWEST, EXP_HIGHEST = np.float32(-87.336544), np.float32(88.75)  # 2^-126, beyond 2^128
EXP_COEFFICIENTS = tuple(np.float32(c) for c in (
    1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
    5.0000001201e-1))
EXP_5, EXP_4, EXP_3, EXP_2, EXP_1, EXP_0 = EXP_COEFFICIENTS


@exact_jit
def exp(x):  # noqa: ANN201
    """float32 e^x within 2 ulp, without a branch: 0 below 2^-126, inf above 2^127.5."""
    clamped = EXP_LOWEST if x < EXP_LOWEST else x
    clamped = EXP_HIGHEST if clamped > EXP_HIGHEST else clamped
    shifted = clamped * LOG2_E + ROUND_TO_INTEGER
    n = shifted - ROUND_TO_INTEGER
    r = (clamped - n * LN2_HIGH) - n * LN2_LOW
    p = ((((EXP_5 * r + EXP_4) * r + EXP_3) * r + EXP_2) * r + EXP_1) * r + EXP_0
    power = float32_from_bits((float32_bits(shifted) + EXPONENT_BIAS) << MANTISSA_BITS)
    return ZERO if x < EXP_LOWEST else (p * r * r + r + ONE) * power


@device_jit
def row_at(rows, length, n):
    """Pointer to row n of rows of `length` elements that follow one another; None of None."""
    return advance(rows, n * items(rows, length))


@device_jit
def inverse_rms(x, length, eps):
    """1 / sqrt(mean(x²) + eps) of `length` float32."""
    total = ZERO
    for k in range(length):
        total += x[k] * x[k]
    return ONE / np.float32(math.sqrt(total / np.float32(length) + eps))


@device_jit
def rms_norm(x, weight, offset, length, eps, out):
    """out = x * rsqrt(mean(x²) + eps) * (weight + offset); x, out: [length] float32; weight:
    [length]."""
    if offset == ZERO:
        factor = inverse_rms(x, length, eps)
        for k in range(length):
            out[k] = x[k] * factor * widen(weight[k])
    else:
        _offset_norm(x, weight, offset, length, eps, out)


@device_jit
def _offset_norm(x, weight, offset, length, eps, out):
    keep_out_of_line()  # most models have none
    factor = inverse_rms(x, length, eps)
    for k in range(length):
        out[k] = x[k] * factor * (widen(weight[k]) + offset)


@device_jit
def largest(values, length):
    """The maximum of `length` >= 1 float32, and the index of its first occurrence."""
    best = maximum(values, length)
    for k in range(length):
        if values[k] == best:
            return best, k
    return best, 0


@device_jit
def is_finite(values, length):
    """Whether none of `length` float32 is NaN or infinite."""
    found = np.int32(0)
    for k in range(length):  # integers, which a reduction may take in any order
        found |= np.int32(float32_bits(values[k]) & EXPONENT == EXPONENT)
    return found == 0


WEIGHT_ROWS = 4 if MANY_REGISTERS else 2  # of a block: its sums fit the registers with operands
SHORT_ROW = 16 * LANES  # below it, one row at a time cannot keep enough sums in flight
# Beside so few rows of x one weight row at a time is fastest: memory has one place to read from.
# More than two must fit the first-level cache, for each weight row takes all of them from there.
STREAMED_ROWS, STREAMED_BYTES = 4, 24 * 1024
FEW_ROWS = 32  # of x; they stay in the cache together, and weights pass by once
PANEL_BYTES = 256 * 1024  # weights that stay in the second-level cache while more x rows pass by


def _stream_of(x_rows):  # noqa: ANN202
    """A function that multiplies up to `x_rows` rows of x: weight rows pass by once, one at a time,
    at the speed of memory."""

    @device_jit
    def stream(weight, weight_rows, length, x, x_stride, count, out, out_stride, keep):
        keep_out_of_line()
        for n in range(weight_rows):
            row = row_at(weight, length, n)
            dot_block(row, x, x_stride, length, advance(out, n), out_stride, keep,
                      address_of(row) + FETCH_AHEAD_BYTES, WHOLE_SHARE, count, 1, x_rows)

    return stream


_stream_1, _stream_2, _stream_4 = _stream_of(1), _stream_of(2), _stream_of(4)


@device_jit
def _stream_rows(weight, weight_rows, length, x, x_stride, x_rows, out, out_stride, keep):
    """All rows of x, few at a time."""
    m = 0
    while m < x_rows:
        count = min(x_rows - m, 4)
        block, of_out = advance(x, m * x_stride), advance(out, m * out_stride)
        if count > 2:
            _stream_4(weight, weight_rows, length, block, x_stride, count, of_out, out_stride, keep)
        elif count > 1:
            _stream_2(weight, weight_rows, length, block, x_stride, count, of_out, out_stride, keep)
        else:
            _stream_1(weight, weight_rows, length, block, x_stride, count, of_out, out_stride, keep)
        m += count


def _panel_of(x_rows):  # noqa: ANN202
    """A function that multiplies up to `x_rows` rows of x with a multiple of WEIGHT_ROWS weight
    rows, while it fetches a share of as many bytes from address `ahead` on."""

    @device_jit
    def panel(weight, weight_rows, length, x, x_stride, count, out, out_stride, keep, ahead, share):
        for n in range(0, weight_rows, WEIGHT_ROWS):
            passed = items(weight, length * n) * item_bytes(weight)
            dot_block(row_at(weight, length, n), x, x_stride, length, advance(out, n), out_stride,
                      keep, ahead + passed * share // WHOLE_SHARE, share, count, WEIGHT_ROWS,
                      x_rows)

    return panel


_panel_6, _panel_4, _panel_2 = _panel_of(6), _panel_of(4), _panel_of(2)


@device_jit
def _panels(weight, weight_rows, length, x, x_stride, x_rows, out, out_stride, keep, ahead):
    """All rows of x with one panel, which stays in the cache meanwhile; ahead: address of as many
    bytes that are needed next."""
    m, panel_bytes = 0, items(weight, length * weight_rows) * item_bytes(weight)
    while m < x_rows:
        count = min(x_rows - m, 6)
        block, of_out = advance(x, m * x_stride), advance(out, m * out_stride)
        place, share = ahead + panel_bytes * m // x_rows, count * WHOLE_SHARE // x_rows
        if count > 4:
            _panel_6(weight, weight_rows, length, block, x_stride, count, of_out, out_stride, keep,
                     place, share)
        elif count > 2:
            _panel_4(weight, weight_rows, length, block, x_stride, count, of_out, out_stride, keep,
                     place, share)
        else:
            _panel_2(weight, weight_rows, length, block, x_stride, count, of_out, out_stride, keep,
                     place, share)
        m += count


@device_jit
def _following(weight, length, n, rows, ahead):
    """Address of what is fetched while `rows` weight rows from row n on are multiplied."""
    if ahead is None:
        return address_of(row_at(weight, length, n + rows))
    return address_of(row_at(ahead, length, n))


@device_jit
def matmul_rows(weight, weight_rows, length, x, x_stride, x_rows, out, out_stride, keep, ahead):
    """out[m, n] = keep * out[m, n] + Σ_k weight[n, k] * x[m, k].

    weight: [weight_rows, length] of any format; x: [x_rows, length] at `x_stride`, float32
    or as `multiplicand` says; out: [x_rows, weight_rows] float32 at `out_stride`; keep: 0 or 1.
    ahead: as many rows of any format, which are fetched into the cache meanwhile, for what comes
    next; None where `weight` is not in the cache itself, and its own rows are fetched.
    """
    keep_out_of_line()
    is_streamed = x_rows <= 2 or (x_rows <= STREAMED_ROWS
                                  and x_rows * length * item_bytes(x) <= STREAMED_BYTES)
    in_panels = not is_streamed or length < SHORT_ROW
    whole = weight_rows - weight_rows % WEIGHT_ROWS if in_panels else 0
    panel_rows = WEIGHT_ROWS
    if x_rows > FEW_ROWS:
        panel_rows = max(PANEL_BYTES // (length * 4) // WEIGHT_ROWS, 1) * WEIGHT_ROWS
    for n in range(0, whole, panel_rows):
        rows = min(panel_rows, whole - n)
        _panels(row_at(weight, length, n), rows, length, x, x_stride, x_rows, advance(out, n),
                out_stride, keep, _following(weight, length, n, rows, ahead))
    if whole < weight_rows:
        _stream_rows(row_at(weight, length, whole), weight_rows - whole, length, x, x_stride,
                     x_rows, advance(out, whole), out_stride, keep)


ROW_VECTORS = 4  # columns of a block of weighted sums, in vectors


def _row_sum_of(out_rows):  # noqa: ANN202
    """A function that adds weighted rows onto `out_rows` rows, all `width` columns of them."""

    @device_jit
    def row_sum(coefficient, coefficient_stride, rows, length, width, out, out_stride, ahead):
        d = 0
        while d + ROW_VECTORS * LANES <= width:
            sum_rows_block(coefficient, coefficient_stride, advance(rows, d), width, length,
                           advance(out, d), out_stride, width, advance(ahead, d), out_rows,
                           ROW_VECTORS)
            d += ROW_VECTORS * LANES
        while d < width:
            sum_rows_block(coefficient, coefficient_stride, advance(rows, d), width, length,
                           advance(out, d), out_stride, width - d, advance(ahead, d), out_rows, 1)
            d += LANES

    return row_sum


_row_sum_4, _row_sum_2, _row_sum_1 = _row_sum_of(4), _row_sum_of(2), _row_sum_of(1)


@device_jit
def _row_sum(coefficient, coefficient_stride, rows, length, width, out, out_stride, out_rows,
             ahead):
    """The largest block of the `out_rows` rows of out; returns how many that are."""
    if out_rows >= 4:
        _row_sum_4(coefficient, coefficient_stride, rows, length, width, out, out_stride, ahead)
        return 4
    if out_rows >= 2:
        _row_sum_2(coefficient, coefficient_stride, rows, length, width, out, out_stride, ahead)
        return 2
    _row_sum_1(coefficient, coefficient_stride, rows, length, width, out, out_stride, ahead)
    return 1


@device_jit
def sum_rows(coefficient, coefficient_stride, rows, length, width, out, out_stride, out_rows,
             ahead):
    """out[m, d] += Σ_t coefficient[m, t] * rows[t, d].

    coefficient: [out_rows, length] float32; rows: [length, width] of any storage type;
    out: [out_rows, width] float32; strides in elements. As many elements at `ahead` as `rows` has
    are fetched into the cache meanwhile, for what comes next.
    """
    m = 0
    while m < out_rows:
        m += _row_sum(advance(coefficient, m * coefficient_stride), coefficient_stride, rows,
                      length, width, advance(out, m * out_stride), out_stride, out_rows - m, ahead)
