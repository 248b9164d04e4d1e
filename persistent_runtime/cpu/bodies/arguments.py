"""How bodies read their argument record and the step's rows (layout.py has the layout)."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from event_tensor.device_function import DeviceFunction
from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.intrinsics import float64_from_bits, pointer_to
from persistent_runtime.cpu.vectors.numerics import row_at
from persistent_runtime.rows import layout

FLOAT32, INT32, INT64 = np.float32(0), np.int32(0), np.int64(0)  # element types for `operand`


def record_offsets(declaration: DeviceFunction) -> Any:
    """The offsets of the argument record as a namedtuple, whose fields compile to constants."""
    offsets = layout.argument_offsets(declaration)
    return namedtuple(f"{declaration.name}_offsets", offsets)(**offsets)


@device_jit
def operand(arguments, offset, like):  # noqa: ANN201
    """Pointer to an operand's first element, of the type of `like`."""
    return pointer_to(arguments[offset + layout.ADDRESS], like)


@device_jit
def weight_row(arguments, offset, n, length, like):
    """Pointer to row n of a weight whose rows have `length` elements. All bodies find rows of
    weights through this, whatever a row's bytes are."""
    return row_at(operand(arguments, offset, like), length, n)


@device_jit
def is_given(arguments, offset):
    """Whether the call bound this optional operand."""
    return arguments[offset + layout.ADDRESS] != 0


@device_jit
def dim(arguments, offset, axis):
    """Size of one dimension of an operand."""
    return arguments[offset + layout.DIMS + axis]


@device_jit
def float_parameter(arguments, offset):
    return np.float32(float64_from_bits(arguments[offset]))


@device_jit
def tile_range(index, size, limit):
    """[begin, end) of a tile, cut at the end of the dimension."""
    begin = min(np.int64(index) * size, limit)
    return begin, min(begin + size, limit)


@device_jit
def row_entry(arguments, offset, step, row):
    """Entry of row_request or row_position for local row `row` of this step."""
    return np.int64(operand(arguments, offset, INT32)[step[layout.ROW_BASE] + row])


@device_jit
def logit_entry(arguments, offset, step, row):
    """The token row that logit row `row` of this step answers."""
    return np.int64(operand(arguments, offset, INT32)[step[layout.LOGIT_BASE] + row])


@device_jit
def kv_vector(arguments, cache, request, head, position, like):
    """Pointer to a position's vector in a [requests, kv_heads, max_context, head_dim] cache.

    Every access to a KV cache goes through here, so that paging can come in one place. Positions
    from here to the end of the context follow one another at a distance of head_dim.
    """
    kv_heads, max_context = dim(arguments, cache, 1), dim(arguments, cache, 2)
    vector = (request * kv_heads + head) * max_context + position
    return row_at(operand(arguments, cache, like), dim(arguments, cache, 3), vector)
