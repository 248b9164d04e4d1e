"""The matrix-vector product whose weights come through the ring (ring.py, pieces.py).

A thread holds the activations that meet its 16 bytes of each line, times the norm's weight, in
registers for the whole tile. Warps take pieces at their own pace and leave partial sums in shared
memory; one barrier per tile, then a thread per row adds them up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from persistent_runtime.gpu.ring.pieces import (
    ELEMENT_BYTES,
    LINE_BYTES,
    PIECE_LINES,
    SUMS,
    WARPS,
)
from persistent_runtime.gpu.ring.ring import (
    BARRIERS,
    EVERY_THREAD,
    FIRST_PIECE,
    PIECE_COUNT,
    SEGMENT,
    SQUARES,
    SUMS_AT,
    WORKER,
    ask,
    piece_at,
    place_after,
    release,
    ring_end,
    stream_of,
    take,
)

LINE = tl.constexpr(LINE_BYTES // ELEMENT_BYTES)  # elements
EACH = tl.constexpr(LINE_BYTES // ELEMENT_BYTES // EVERY_THREAD.value)  # of a line, per thread
LINES = tl.constexpr(PIECE_LINES)
ALL_WARPS = tl.constexpr(WARPS)
ALL_SUMS, ALL_SQUARES = tl.constexpr(SUMS_AT), tl.constexpr(SQUARES)
UP_SUMS = tl.constexpr(SUMS // 2)  # where the second matrix has its partial sums

# $0 … $7 eight floats, $8 their address
LOAD_FLOATS = tl.constexpr("""{
    ld.global.v4.f32 {$0, $1, $2, $3}, [$8];
    ld.global.v4.f32 {$4, $5, $6, $7}, [$8 + 16];
}""")
# $0 … $3 eight elements of two bytes, $4 their address
LOAD_PAIRS = tl.constexpr("ld.global.v4.b32 {$0, $1, $2, $3}, [$4];")


def leave_sums(count: int, at: int) -> tl.constexpr:
    """PTX: $0 a lane's number; then `count` (1, 2 or 4) floats; then end, and the first place.

    Adds each float over the warp, in as few shuffles as can be: lanes that differ in one bit
    exchange halves of what they hold. The warp's sum of float v goes to place first + v * WARPS +
    warp of the floats that begin `at` bytes before the end.
    """
    end, first = f"${1 + count}", f"${2 + count}"
    held = [f"a{v}" for v in range(count)]
    lines = [f".reg .f32 {', '.join(f'a{v}' for v in range(4))}, send;", ".reg .pred upper;",
             ".reg .u32 lane, thread, at;", "mov.u32 lane, %laneid;", "mov.u32 thread, %tid.x;"]
    lines += [f"mov.f32 a{v}, ${1 + v};" for v in range(count)]
    bit = 16
    while bit:
        lines += [f"and.b32 at, lane, {bit};", "setp.ne.u32 upper, at, 0;"]
        half = len(held) // 2
        for low, high in zip(held[:half], held[half:], strict=True) if half else ():
            lines += [f"selp.f32 send, {low}, {high}, upper;",
                      f"selp.f32 {low}, {high}, {low}, upper;",
                      f"shfl.sync.bfly.b32 send, send, {bit}, 31, 0xffffffff;",
                      f"add.f32 {low}, {low}, send;"]
        if not half:
            lines += [f"shfl.sync.bfly.b32 send, a0, {bit}, 31, 0xffffffff;",
                      "add.f32 a0, a0, send;"]
        held = held[:max(half, 1)]
        bit //= 2
    # the upper bits of a lane's number now say which float it holds
    group = 32 // count
    lines += [f"and.b32 at, lane, {group - 1};", "setp.ne.u32 upper, at, 0;",
              f"div.u32 lane, lane, {group};", f"mad.lo.u32 at, lane, {WARPS}, {first};",
              "shr.u32 lane, thread, 5;", "add.u32 at, at, lane;",
              f"mad.lo.u32 at, at, 4, {end};",
              f"@!upper st.shared.f32 [at + -{at}], a0;", "mov.b32 $0, lane;"]
    return tl.constexpr("{\n" + "\n".join(lines) + "\n}")


LEAVE_1, LEAVE_2, LEAVE_4 = (leave_sums(count, SUMS_AT) for count in (1, 2, 4))
LEAVE_SQUARES = leave_sums(1, SQUARES)
assert SQUARES - BARRIERS >= 4 * WARPS


@triton.jit
def lower(pairs, TYPE: tl.constexpr):
    """The first element of each pair of two-byte elements, as float32."""
    if TYPE == tl.bfloat16:
        values = (pairs << 16).to(tl.float32, bitcast=True)
    else:
        values = pairs.to(tl.int16).to(TYPE, bitcast=True).to(tl.float32)
    return values


@triton.jit
def upper(pairs, TYPE: tl.constexpr):
    """The second element of each pair."""
    if TYPE == tl.bfloat16:
        values = (pairs & -65536).to(tl.float32, bitcast=True)
    else:
        values = (pairs >> 16).to(tl.int16).to(TYPE, bitcast=True).to(tl.float32)
    return values


@triton.jit
def load_floats(address):
    """Eight float32 tensors, consecutive elements from each of the addresses on."""
    return tl.inline_asm_elementwise(
        LOAD_FLOATS, "=f,=f,=f,=f,=f,=f,=f,=f,l", [address],
        dtype=(tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32, tl.float32,
               tl.float32), is_pure=False, pack=1)


@triton.jit
def load_pairs(address):
    """Four int32 tensors, each a pair of two-byte elements, from each of the addresses on."""
    return tl.inline_asm_elementwise(
        LOAD_PAIRS, "=r,=r,=r,=r,l", [address], dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=False, pack=1)


@triton.jit
def load_norm(address, TYPE: tl.constexpr):
    """Eight consecutive elements of a norm's weight from each of the addresses on, as float32."""
    if TYPE == tl.float32:
        values = load_floats(address)
    else:
        values = ()
        pairs = load_pairs(address)
        for k in tl.static_range(EACH // 2):
            values = values + (lower(pairs[k], TYPE), upper(pairs[k], TYPE))
    return values


@triton.jit
def moved(factors, OFFSET: tl.constexpr):
    """What a norm multiplies by: its weights, and what is added to each."""
    if OFFSET != 0.0:
        factors += OFFSET
    return factors


@triton.jit
def load_activations(x, norm, NORMED: tl.constexpr, LENGTH: tl.constexpr, PERIOD: tl.constexpr,
                     NORM: tl.constexpr, OFFSET: tl.constexpr):
    """(x * (norm + OFFSET), EACH values per line of the period, the sum of squares of x): [threads]
    each."""
    lane = tl.arange(0, EVERY_THREAD)
    squares = tl.zeros([EVERY_THREAD], tl.float32)
    values = ()
    for line in tl.static_range(PERIOD):
        first = (line * LINE + lane * EACH) % LENGTH
        loaded = load_floats((x + first).to(tl.int64))
        if NORMED:
            factors = load_norm((norm + first).to(tl.int64), NORM)
            for k in tl.static_range(EACH // 2):
                squares += loaded[2 * k] * loaded[2 * k] + loaded[2 * k + 1] * loaded[2 * k + 1]
                values = values + (loaded[2 * k] * moved(factors[2 * k], OFFSET),
                                   loaded[2 * k + 1] * moved(factors[2 * k + 1], OFFSET))
        else:
            values = values + loaded
    return values, squares


@triton.jit
def multiply_line(weights, values, LINE_OF_PIECE: tl.constexpr, LINE_OF_PERIOD: tl.constexpr,
                  TYPE: tl.constexpr):
    """What one line adds to this thread's sum for a row: [threads]."""
    total = tl.zeros([EVERY_THREAD], tl.float32)
    for k in tl.static_range(EACH // 2):
        pairs = weights[LINE_OF_PIECE * (EACH // 2) + k]
        total += lower(pairs, TYPE) * values[LINE_OF_PERIOD * EACH + 2 * k]
        total += upper(pairs, TYPE) * values[LINE_OF_PERIOD * EACH + 2 * k + 1]
    return total


@triton.jit
def multiply_piece(weights, values, FIRST: tl.constexpr, USED: tl.constexpr, PERIOD: tl.constexpr,
                   TOGETHER: tl.constexpr, TYPE: tl.constexpr):
    """Sums of a piece of USED lines, of each TOGETHER lines one. FIRST: line of the period; where
    several lines make a row, or rows share lines, the values go on from there and start over."""
    totals = ()
    for group in tl.static_range(USED // TOGETHER):
        total = tl.zeros([EVERY_THREAD], tl.float32)
        for line in tl.static_range(TOGETHER):
            total += multiply_line(weights, values, group * TOGETHER + line,
                                   (FIRST + group * TOGETHER + line) % PERIOD, TYPE)
        totals = totals + (total,)
    return totals


@triton.jit
def leave(totals, end, first, COUNT: tl.constexpr):
    """Adds COUNT sums over each warp and puts them down from place `first` on."""
    if COUNT == 1:
        tl.inline_asm_elementwise(LEAVE_1, "=r,f,r,r", [totals[0], end, first], dtype=tl.int32,
                                  is_pure=False, pack=1)
    elif COUNT == 2:
        tl.inline_asm_elementwise(LEAVE_2, "=r,f,f,r,r", [totals[0], totals[1], end, first],
                                  dtype=tl.int32, is_pure=False, pack=1)
    elif COUNT == 3:  # the fourth is overwritten by the next round's first
        tl.inline_asm_elementwise(
            LEAVE_4, "=r,f,f,f,f,r,r",
            [totals[0], totals[1], totals[2], tl.zeros_like(totals[0]), end, first],
            dtype=tl.int32, is_pure=False, pack=1)
    else:
        tl.inline_asm_elementwise(
            LEAVE_4, "=r,f,f,f,f,r,r", [totals[0], totals[1], totals[2], totals[3], end, first],
            dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def leave_squares(squares, end):
    """Adds the squares over each warp and puts the sums down."""
    tl.inline_asm_elementwise(LEAVE_SQUARES, "=r,f,r,r", [squares, end, 0], dtype=tl.int32,
                              is_pure=False, pack=1)


@triton.jit
def add_up(address, COUNT: tl.constexpr):
    """Sum of COUNT floats of shared memory from each address on; [threads]."""
    total = tl.zeros([EVERY_THREAD], tl.float32)
    for k in tl.static_range(COUNT):
        total += tl.inline_asm_elementwise("ld.shared.f32 $0, [$1];", "=f,r", [address + 4 * k],
                                           dtype=tl.float32, is_pure=False, pack=1)
    return total


@triton.jit
def stream_row(x, norm, tile, index, NORMED: tl.constexpr, GATED: tl.constexpr,
               PERIOD: tl.constexpr, PIECES: tl.constexpr, TYPE: tl.constexpr,
               OFFSET: tl.constexpr):
    """Uses up the pieces of a tile against one row x [PERIOD.in_features] in step `index` of the
    segment; leaves partial sums behind. PIECES: slots of the ring."""
    ALL_LINES: tl.constexpr = PERIOD.lines
    TOGETHER: tl.constexpr = PERIOD.lines_per_sum
    IN_TWO: tl.constexpr = ALL_LINES > LINES
    AT_ONCE: tl.constexpr = 2 if GATED or IN_TWO else 1
    USED: tl.constexpr = LINES if IN_TWO else LINES // ALL_LINES * ALL_LINES
    LEFT: tl.constexpr = PERIOD.sums_per_round
    end = ring_end()
    tl.debug_barrier()  # every thread has read the sums of the task before
    values, squares = load_activations(x, norm, NORMED, PERIOD.in_features, ALL_LINES,
                                       norm.dtype.element_ty, OFFSET)
    if NORMED:
        leave_squares(squares, end)
    stream = stream_of(tile[SEGMENT], tile[WORKER])
    first, count = tile[FIRST_PIECE], tile[PIECE_COUNT]
    number = index * stream[1] + first
    # what the slots of a round are filled with again: asked for a round late, when all warps have
    # read them
    place = (first + PIECES) % stream[1]
    address, size = piece_at(stream, place)
    other_address, other_size = piece_at(stream, place_after(place, stream))
    for use in tl.range(0, count // AT_ONCE):
        at = use * (LEFT * ALL_WARPS)
        weights = take(end, number, PIECES)
        if IN_TWO:
            totals = multiply_piece(weights, values, 0, LINES, ALL_LINES, LINES, TYPE)
            release(end, number, PIECES)
            weights = take(end, number + 1, PIECES)
            rest = multiply_piece(weights, values, LINES, ALL_LINES - LINES, ALL_LINES,
                                  ALL_LINES - LINES, TYPE)
            leave((totals[0] + rest[0],), end, at, 1)
        else:
            totals = multiply_piece(weights, values, 0, USED, ALL_LINES, TOGETHER, TYPE)
            leave(totals, end, at, LEFT)
            if GATED:
                release(end, number, PIECES)
                weights = take(end, number + 1, PIECES)
                totals = multiply_piece(weights, values, 0, USED, ALL_LINES, TOGETHER, TYPE)
                leave(totals, end, at + UP_SUMS, LEFT)
        release(end, number + (AT_ONCE - 1), PIECES)
        if use > 0:
            ask(end, number + (PIECES - AT_ONCE), address, size, PIECES)
            place = place_after(place, stream)
            if AT_ONCE == 2:
                ask(end, number + (PIECES - 1), other_address, other_size, PIECES)
                place = place_after(place, stream)
            address, size = piece_at(stream, place)
            if AT_ONCE == 2:
                other_address, other_size = piece_at(stream, place_after(place, stream))
        number += AT_ONCE
    tl.debug_barrier()  # all partial sums are there, and the last pieces have been read
    ask(end, number + (PIECES - AT_ONCE), address, size, PIECES)
    if AT_ONCE == 2:
        ask(end, number + (PIECES - 1), other_address, other_size, PIECES)


@triton.jit
def row_sums(n, SECOND: tl.constexpr, PERIOD: tl.constexpr):
    """The finished products of the tile's rows n: [threads]. SECOND: of the second matrix."""
    COUNT: tl.constexpr = PERIOD.sums_per_row
    FIRST: tl.constexpr = UP_SUMS if SECOND else 0
    return add_up(ring_end() - ALL_SUMS + 4 * (n * COUNT + FIRST), COUNT)


@triton.jit
def inverse_norm(eps, PERIOD: tl.constexpr):
    """1 / rms of the row, from the warps' sums of squares: [threads]."""
    # where a line holds several rows, several threads have squared the same element
    ELEMENTS: tl.constexpr = PERIOD.in_features * PERIOD.rows
    address = ring_end() - ALL_SQUARES + tl.zeros([EVERY_THREAD], tl.int32)
    return 1.0 / tl.sqrt(add_up(address, ALL_WARPS) / ELEMENTS + eps)


@triton.jit
def multiply_streamed(x, norm, biases, out, length, columns, eps, tile, index,
                      NORMED: tl.constexpr, GATED: tl.constexpr, ACCUMULATE: tl.constexpr,
                      K: tl.constexpr, ACTIVATE: tl.constexpr, CONFIG: tl.constexpr):
    """multiply_row with weights that come through the ring, if `length` is that of period K.
    ACTIVATE: what finishes sums (bodies/epilogue.py)."""
    PERIOD: tl.constexpr = CONFIG.periods[K]
    if length == PERIOD.in_features:
        lane = tl.arange(0, EVERY_THREAD)
        residual = tl.zeros([EVERY_THREAD], tl.float32)
        if ACCUMULATE:  # arrives while the product is on its way
            residual = tl.load(out + lane, mask=lane < columns, other=0)
        stream_row(x, norm, tile, index, NORMED, GATED, PERIOD, CONFIG.ring,
                   CONFIG.weights[0].element, CONFIG.norm_offset)
        factor = 1.0
        if NORMED:
            factor = inverse_norm(eps, PERIOD)
        for first in tl.range(0, columns, EVERY_THREAD):
            n = first + lane
            mask = n < columns
            there = tl.minimum(n, columns - 1)
            sums = row_sums(there, False, PERIOD)
            ups = sums
            if GATED:
                ups = row_sums(there, True, PERIOD)
            sums = ACTIVATE(sums, ups, factor, biases, n, mask, GATED, CONFIG)
            if ACCUMULATE:
                if first > 0:
                    residual = tl.load(out + n, mask=mask, other=0)
                sums += residual
            tl.store(out + n, sums, mask=mask)
