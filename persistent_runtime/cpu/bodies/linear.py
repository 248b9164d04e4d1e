"""Bodies of the matrix products: one generic source each, for one row or many."""

from __future__ import annotations

import numpy as np

from persistent_runtime.cpu.bodies.activations import activate_times
from persistent_runtime.cpu.bodies.arguments import (
    FLOAT32,
    INT32,
    dim,
    float_parameter,
    is_given,
    logit_entry,
    operand,
    record_offsets,
    tile_range,
    weight_row,
)
from persistent_runtime.cpu.compile.registry import cpu_body
from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.blocks import (
    begin_stream,
    multiplicand,
    round_block,
    shared_format,
)
from persistent_runtime.cpu.vectors.intrinsics import (
    address_of,
    advance,
    item_bytes,
    pointer_to,
    widen,
)
from persistent_runtime.cpu.vectors.numerics import (
    ONE,
    is_finite,
    largest,
    matmul_rows,
    rms_norm,
)
from persistent_runtime.functions import dense as device_functions

NORM_LINEAR = record_offsets(device_functions.norm_linear)
LINEAR_RESIDUAL = record_offsets(device_functions.linear_residual)
GATE_UP = record_offsets(device_functions.norm_gate_up)
LM_HEAD = record_offsets(device_functions.norm_lm_head)
NOT_A_NUMBER = np.float32(np.nan)
KEEP, REPLACE = np.int64(1), np.int64(0)  # no literals: both are one version of `multiply`

# Scratch holds the tile's normalised rows and this many rows of in_features more.
SPARE_ROWS = device_functions.norm_gate_up.scratch_bytes.evaluate(
    {"tile_m": 0, "in_features": 1}) // FLOAT32.itemsize


@device_jit
def add_bias(out, out_stride, rows, bias, columns):  # noqa: ANN201
    """out[m, n] += bias[n] for a tile of `rows` rows."""
    for m in range(rows):
        row = advance(out, m * out_stride)
        for n in range(columns):
            row[n] += widen(bias[n])


# From so many rows on arithmetic takes the time, not memory: there x is rounded to bfloat16 if the
# machine multiplies that. The rows of a decode step, one for each request, are fewer.
ROUNDED_ROWS = 17


@device_jit
def as_multiplicand(scratch, like):
    """Scratch as room for many rows of x, in the precision that they have beside such weights."""
    return pointer_to(address_of(scratch), multiplicand(like))


@device_jit
def is_rounded(rows, scratch, like):
    return rows >= ROUNDED_ROWS and item_bytes(as_multiplicand(scratch, like)) < item_bytes(scratch)


@device_jit
def rounded(x, count, scratch, like):
    """`count` elements of x in that precision, in scratch, where x may be as well."""
    kept = as_multiplicand(scratch, like)
    round_block(x, count, kept)
    return kept


@device_jit
def multiply(weight, columns, length, x, rows, out, out_stride, keep, scratch, like):
    """out = keep * out + x @ weight.T; x may lie in scratch, where it is rounded if need be."""
    if is_rounded(rows, scratch, like):
        matmul_rows(weight, columns, length, rounded(x, rows * length, scratch, like), length, rows,
                    out, out_stride, keep=keep, ahead=None)
    else:
        matmul_rows(weight, columns, length, x, length, rows, out, out_stride, keep=keep,
                    ahead=None)


@device_jit
def norm_rows(x, rows, norm_weight, offset, length, eps, scratch):
    """scratch[m] = rms_norm(x[m]) for `rows` rows."""
    for m in range(rows):
        rms_norm(advance(x, m * length), norm_weight, offset, length, eps,
                 advance(scratch, m * length))


@cpu_body(device_functions.norm_linear)
def norm_linear(arguments, tile, step, scratch, formats):  # noqa: ANN201
    """out = rms_norm(x) @ weight.T + bias"""
    length = arguments[NORM_LINEAR.in_features]
    tokens, out_stride = dim(arguments, NORM_LINEAR.x, 0), dim(arguments, NORM_LINEAR.out, 1)
    first, last = tile_range(tile[0], arguments[NORM_LINEAR.tile_m], tokens)
    begin, end = tile_range(tile[1], arguments[NORM_LINEAR.tile_n],
                            dim(arguments, NORM_LINEAR.weight, 0))
    weight = weight_row(arguments, NORM_LINEAR.weight, begin, length, formats.weight)
    begin_stream(weight)  # arrives while the rows are normalised
    x = operand(arguments, NORM_LINEAR.x, FLOAT32)
    norm_weight = operand(arguments, NORM_LINEAR.norm_weight, formats.norm_weight)
    offset = float_parameter(arguments, NORM_LINEAR.norm_offset)
    eps = float_parameter(arguments, NORM_LINEAR.eps)
    norm_rows(advance(x, first * length), last - first, norm_weight, offset, length, eps, scratch)
    out = advance(operand(arguments, NORM_LINEAR.out, FLOAT32), first * out_stride + begin)
    multiply(weight, end - begin, length, scratch, last - first, out, out_stride, keep=0,
             scratch=scratch, like=formats.weight)
    if is_given(arguments, NORM_LINEAR.bias):
        bias = advance(operand(arguments, NORM_LINEAR.bias, formats.bias), begin)
        add_bias(out, out_stride, last - first, bias, end - begin)


@device_jit
def add_multiple(arguments, multiplier, x, rows, begin, end, residual, scratch, formats):
    """Columns [begin, end) of residual += (x @ weight.T + bias) * multiplier, where that is not
    one; residual points to the first of them."""
    length = arguments[LINEAR_RESIDUAL.in_features]
    out_stride = dim(arguments, LINEAR_RESIDUAL.residual, 1)
    product = advance(scratch, rows * length)  # x may lie before it, rounded
    columns = max(SPARE_ROWS * length // max(rows, 1), 1)
    for n in range(begin, end, columns):
        width = min(columns, end - n)
        weight = weight_row(arguments, LINEAR_RESIDUAL.weight, n, length, formats.weight)
        multiply(weight, width, length, x, rows, product, width, keep=REPLACE, scratch=scratch,
                 like=formats.weight)
        if is_given(arguments, LINEAR_RESIDUAL.bias):
            bias = advance(operand(arguments, LINEAR_RESIDUAL.bias, formats.bias), n)
            add_bias(product, width, rows, bias, width)
        for m in range(rows):
            of_row = advance(residual, m * out_stride + n - begin)
            for k in range(width):
                of_row[k] += product[m * width + k] * multiplier


@cpu_body(device_functions.linear_residual)
def linear_residual(arguments, tile, step, scratch, formats):
    """residual += (x @ weight.T + bias) * multiplier"""
    length = arguments[LINEAR_RESIDUAL.in_features]
    tokens = dim(arguments, LINEAR_RESIDUAL.x, 0)
    out_stride = dim(arguments, LINEAR_RESIDUAL.residual, 1)
    first, last = tile_range(tile[0], arguments[LINEAR_RESIDUAL.tile_m], tokens)
    begin, end = tile_range(tile[1], arguments[LINEAR_RESIDUAL.tile_n],
                            dim(arguments, LINEAR_RESIDUAL.weight, 0))
    x = advance(operand(arguments, LINEAR_RESIDUAL.x, FLOAT32), first * length)
    weight = weight_row(arguments, LINEAR_RESIDUAL.weight, begin, length, formats.weight)
    residual = advance(operand(arguments, LINEAR_RESIDUAL.residual, FLOAT32),
                       first * out_stride + begin)
    multiplier = float_parameter(arguments, LINEAR_RESIDUAL.multiplier)
    if multiplier != ONE:
        add_multiple(arguments, multiplier, x, last - first, begin, end, residual, scratch,
                     formats)
        return
    multiply(weight, end - begin, length, x, last - first, residual, out_stride, keep=KEEP,
             scratch=scratch, like=formats.weight)
    if is_given(arguments, LINEAR_RESIDUAL.bias):
        bias = advance(operand(arguments, LINEAR_RESIDUAL.bias, formats.bias), begin)
        add_bias(residual, out_stride, last - first, bias, end - begin)


@device_jit
def gate_up_columns(arguments, y, rows, length, begin, end, out, out_stride, scratch, formats):
    """Columns [begin, end) of act(y @ gate.T) * (y @ up.T)."""
    gate, activation = advance(scratch, rows * length), arguments[GATE_UP.activation]
    # the gate's columns wait in the spare scratch while the up columns are computed
    columns = max(SPARE_ROWS * length // max(rows, 1), 1)
    for n in range(begin, end, columns):
        width = min(columns, end - n)
        up = advance(out, n)
        gate_weight = weight_row(arguments, GATE_UP.gate_weight, n, length, formats.gate_weight)
        up_weight = weight_row(arguments, GATE_UP.up_weight, n, length, formats.up_weight)
        matmul_rows(gate_weight, width, length, y, length, rows, gate, width, keep=0,
                    ahead=None)
        matmul_rows(up_weight, width, length, y, length, rows, up, out_stride, keep=0,
                    ahead=None)
        if is_given(arguments, GATE_UP.gate_bias):
            bias = advance(operand(arguments, GATE_UP.gate_bias, formats.gate_bias), n)
            add_bias(gate, width, rows, bias, width)
        if is_given(arguments, GATE_UP.up_bias):
            bias = advance(operand(arguments, GATE_UP.up_bias, formats.up_bias), n)
            add_bias(up, out_stride, rows, bias, width)
        for m in range(rows):
            activate_times(activation, advance(gate, m * width), advance(up, m * out_stride), width)


@cpu_body(device_functions.norm_gate_up)
def norm_gate_up(arguments, tile, step, scratch, formats):
    """out = act(y @ gate_weight.T + gate_bias) * (y @ up_weight.T + up_bias), y = rms_norm(x)"""
    length = arguments[GATE_UP.in_features]
    tokens, out_stride = dim(arguments, GATE_UP.x, 0), dim(arguments, GATE_UP.out, 1)
    first, last = tile_range(tile[0], arguments[GATE_UP.tile_m], tokens)
    begin, end = tile_range(tile[1], arguments[GATE_UP.tile_n],
                            dim(arguments, GATE_UP.gate_weight, 0))
    rows = last - first
    begin_stream(weight_row(arguments, GATE_UP.gate_weight, begin, length, formats.gate_weight))
    x = operand(arguments, GATE_UP.x, FLOAT32)
    norm_weight = operand(arguments, GATE_UP.norm_weight, formats.norm_weight)
    offset = float_parameter(arguments, GATE_UP.norm_offset)
    eps = float_parameter(arguments, GATE_UP.eps)
    norm_rows(advance(x, first * length), rows, norm_weight, offset, length, eps, scratch)
    out = advance(operand(arguments, GATE_UP.out, FLOAT32), first * out_stride)
    like = shared_format(formats.gate_weight, formats.up_weight)
    if is_rounded(rows, scratch, like):
        gate_up_columns(arguments, rounded(scratch, rows * length, scratch, like), rows, length,
                        begin, end, out, out_stride, scratch, formats)
    else:
        gate_up_columns(arguments, scratch, rows, length, begin, end, out, out_stride, scratch,
                        formats)


@cpu_body(device_functions.norm_lm_head)
def norm_lm_head(arguments, tile, step, scratch, formats):
    """logits = rms_norm(x[logit_row]) @ weight.T, and each row's best column within the tile"""
    length = arguments[LM_HEAD.in_features]
    logit_rows, vocab = dim(arguments, LM_HEAD.logits, 0), dim(arguments, LM_HEAD.logits, 1)
    first, last = tile_range(tile[0], arguments[LM_HEAD.tile_m], logit_rows)
    begin, end = tile_range(tile[1], arguments[LM_HEAD.tile_n], vocab)
    weight = weight_row(arguments, LM_HEAD.weight, begin, length, formats.weight)
    begin_stream(weight)
    x = operand(arguments, LM_HEAD.x, FLOAT32)
    norm_weight = operand(arguments, LM_HEAD.norm_weight, formats.norm_weight)
    offset = float_parameter(arguments, LM_HEAD.norm_offset)
    eps = float_parameter(arguments, LM_HEAD.eps)
    for m in range(first, last):
        row = logit_entry(arguments, LM_HEAD.logit_row, step, m)
        rms_norm(advance(x, row * length), norm_weight, offset, length, eps,
                 advance(scratch, (m - first) * length))
    logits = advance(operand(arguments, LM_HEAD.logits, FLOAT32), first * vocab + begin)
    matmul_rows(weight, end - begin, length, scratch, length, last - first, logits, vocab, keep=0,
                ahead=None)
    tiles = dim(arguments, LM_HEAD.tile_max, 1)
    tile_max = operand(arguments, LM_HEAD.tile_max, FLOAT32)
    tile_argmax = operand(arguments, LM_HEAD.tile_argmax, INT32)
    for m in range(first, last):
        of_row = advance(logits, (m - first) * vocab)
        best, index = largest(of_row, end - begin)
        tile_max[m * tiles + tile[1]] = best if is_finite(of_row, end - begin) else NOT_A_NUMBER
        tile_argmax[m * tiles + tile[1]] = begin + index
