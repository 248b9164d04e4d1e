"""Records and counters as pointers: how device code gets from an address to what lies there."""

from __future__ import annotations

import triton
import triton.language as tl

from persistent_runtime.rows import layout

INT32_BYTES = tl.constexpr(4)
COUNTER_BYTES = tl.constexpr(layout.EVENT_STRIDE * 4)


@triton.jit
def counter_at(address):
    """int64 address → pointer to an int32 counter or flag."""
    return address.to(tl.pointer_type(tl.int32))


@triton.jit
def words(address):
    """int64 address → pointer to int64 words."""
    return address.to(tl.pointer_type(tl.int64))


@triton.jit
def flag_at(launch, flag):
    """Address of a word of the control block."""
    return tl.load(launch + layout.CONTROL) + flag * INT32_BYTES


@triton.jit
def ticket_of(launch, worker):
    """Pointer to a worker's ticket for the ready queue, behind the control block."""
    return words(flag_at(launch, layout.CONTROL_WORDS + worker * layout.EVENT_STRIDE))


@triton.jit
def setting(record, WORD: tl.constexpr):
    """A count in a record of int64 words, as an int32."""
    return tl.load(record + WORD).to(tl.int32)


@triton.jit
def segment_at(launch, s):
    """Pointer to the record of segment s."""
    return words(tl.load(launch + layout.SEGMENTS)) + s * layout.SEGMENT_WORDS
