"""How bodies read their argument record and the step's rows (layout.py has the layout).

Sizes and indices are int32, which saves registers; offsets into weights and caches are int64.
"""

from __future__ import annotations

from dataclasses import make_dataclass
from typing import Any

import triton
import triton.language as tl

from event_tensor.device_function import DeviceFunction
from persistent_runtime.rows import layout

# A step as bodies get it: a tuple of scalars in the order of the step record.
STEP_INDEX = tl.constexpr(layout.STEP_INDEX)
ROW_BASE = tl.constexpr(layout.ROW_BASE)
LOGIT_BASE = tl.constexpr(layout.LOGIT_BASE)
ROW_ADVANCE = tl.constexpr(layout.ROW_ADVANCE)


class Constants(tl.constexpr):
    """A frozen dataclass of numbers that device functions read by field name; Triton would take the
    names off a namedtuple that one of them hands on."""

    def __getattr__(self, name: str) -> Any:
        if name == "value" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.value, name)


def record_offsets(declaration: DeviceFunction) -> Constants:
    """The offsets of the argument record, for use as a global of bodies."""
    offsets = layout.argument_offsets(declaration)
    return Constants(make_dataclass(f"{declaration.name}_offsets", offsets, frozen=True)(**offsets))


@triton.jit
def word(arguments, OFFSET: tl.constexpr, MULTIPLE_OF: tl.constexpr = 1):
    """An integer parameter, promised to be a multiple of MULTIPLE_OF.

    The promise has to be made here: a caller's would be lost when this function is inlined.
    """
    return tl.multiple_of(tl.load(arguments + OFFSET).to(tl.int32), MULTIPLE_OF)


@triton.jit
def operand(arguments, OFFSET: tl.constexpr, TYPE: tl.constexpr):
    """Pointer to an operand's first element. Memory of operands is aligned to 16 bytes."""
    address = tl.multiple_of(tl.load(arguments + (OFFSET + layout.ADDRESS)), 16)
    return tl.multiple_of(address.to(tl.pointer_type(TYPE)), 16)


@triton.jit
def weight_row(arguments, OFFSET: tl.constexpr, n, length, STORED: tl.constexpr):
    """Pointer to row n of a weight whose rows have `length` elements. All bodies find rows of
    weights through this, whatever a row's bytes are. n: a tensor."""
    items = length
    if STORED.block_elements > 1:
        items = length // STORED.block_elements * STORED.block_bytes
    return operand(arguments, OFFSET, STORED.element) + n.to(tl.int64) * items


@triton.jit
def load_weights(rows, n, k, length, mask, STORED: tl.constexpr,
                 EVICTION: tl.constexpr = "evict_first"):
    """Elements [n, k] of rows of `length` elements from pointer `rows` on, as they are stored or,
    from blocks, as their loader gives them; 0 where masked."""
    if STORED.block_elements == 1:
        values = tl.load(rows + (n * length + k), mask=mask, other=0, eviction_policy=EVICTION)
    else:
        values = STORED.load(rows, n, k, length, mask)
    return values


@triton.jit
def is_given(arguments, OFFSET: tl.constexpr):
    """Whether the call bound this optional operand."""
    return tl.load(arguments + (OFFSET + layout.ADDRESS)) != 0


@triton.jit
def dim(arguments, OFFSET: tl.constexpr, AXIS: tl.constexpr, MULTIPLE_OF: tl.constexpr = 1):
    """Size of one dimension of an operand, promised to be a multiple of MULTIPLE_OF."""
    size = tl.load(arguments + (OFFSET + layout.DIMS + AXIS)).to(tl.int32)
    return tl.multiple_of(size, MULTIPLE_OF)


@triton.jit
def float_parameter(arguments, OFFSET: tl.constexpr):
    return tl.load(arguments + OFFSET).to(tl.float64, bitcast=True).to(tl.float32)


@triton.jit
def tile_range(index, size, limit):
    """[begin, end) of a tile, cut at the end of the dimension."""
    begin = tl.minimum(index * size, limit)
    return begin, tl.minimum(begin + size, limit)


@triton.jit
def row_entry(arguments, OFFSET: tl.constexpr, step, row, mask):
    """Entries of row_request or row_position for local rows `row` of this step; 0 where masked."""
    entries = operand(arguments, OFFSET, tl.int32)
    return tl.load(entries + step[ROW_BASE] + row, mask=mask, other=0)


@triton.jit
def logit_entry(arguments, OFFSET: tl.constexpr, step, row, mask):
    """The token rows that logit rows `row` of this step answer; 0 where masked."""
    entries = operand(arguments, OFFSET, tl.int32)
    return tl.load(entries + step[LOGIT_BASE] + row, mask=mask, other=0)


@triton.jit
def kv_vector(arguments, CACHE: tl.constexpr, request, head, position, ALIGNMENT: tl.constexpr,
              STORED: tl.constexpr):
    """Pointer to a position's vector in a [requests, kv_heads, max_context, head_dim] cache.

    Every access to a KV cache goes through here, so that paging can come in one place. Positions
    from here to the end of the context follow one another at a distance of head_dim, which is a
    multiple of ALIGNMENT.
    """
    kv_heads, max_context = dim(arguments, CACHE, 1), dim(arguments, CACHE, 2)
    vector = (request.to(tl.int64) * kv_heads + head) * max_context + position
    return weight_row(arguments, CACHE, vector, dim(arguments, CACHE, 3, ALIGNMENT), STORED)
