"""The ring: a worker's next pieces of weights, in shared memory, whatever the worker is at.

Triton's shared memory lives as long as one expression. The ring lies behind it: a launch asks for
RING_BYTES more than the compiler laid out (launch.py), and inline PTX addresses them from the end.
Piece number n of a segment, counted from 0 over all its steps, has slot n % PIECES. Thread 0 asks
for it with one bulk copy, which needs no thread to make progress and no fence that other memory
traffic waits for. Two barriers per slot, in shared memory:
- `full` completes its phase n // PIECES when the bytes of piece n have landed. Whoever reads the
  piece waits for that phase;
- `empty` counts an arrival per warp that has read piece n. Thread 0 waits for all of them before it
  asks for piece n + PIECES. A warp arrives after its last read, and other warps never wait for
  thread 0, so that wait ends.
Weights are written by no task, so the ring reads them before any event, past the end of the step.
What it holds at the end of a segment is of no use; `close_ring` waits until nothing is on its way.
"""

from __future__ import annotations

import triton
import triton.language as tl

from persistent_runtime.gpu.addresses import counter_at, segment_at, words
from persistent_runtime.gpu.ring.pieces import LINE_BYTES, PIECE_BYTES, PIECE_LINES, SUMS, WARPS
from persistent_runtime.gpu.target import MOST_PIECES
from persistent_runtime.rows import layout

# From the end of shared memory downwards: 16 bytes of barriers per slot and the number of pieces
# asked for; the warps' sums of squares; partial sums; slots.
MAX_PIECES = MOST_PIECES
ASKED, BARRIERS, SQUARES = 8, 256, 512
SUMS_AT = SQUARES + 4 * SUMS
LOST_NS = 4_000_000_000  # a copy that has not come by then never will
EVERY_THREAD = tl.constexpr(WARPS * 32)

# Behind a tile's coordinates, where the kernel has a ring: the first of the row's pieces among its
# worker's, how many they are, a pointer to the segment record, and the worker.
FIRST_PIECE, PIECE_COUNT, SEGMENT, WORKER = (
    tl.constexpr(layout.MAX_TILE_RANK + k) for k in range(4))

# $0 the address one past the end of this worker's shared memory
END = tl.constexpr("""{
    .reg .u32 size;
    mov.u32 $0, global_smem;
    mov.u32 size, %dynamic_smem_size;
    add.u32 $0, $0, size;
}""")

# $0 a lane's number; $1 a lane; $2 end. One thread makes the barriers of all slots.
OPEN = tl.constexpr(f"""{{
    .reg .pred other;
    .reg .u32 thread, at;
    mov.b32 $0, $1;
    mov.u32 thread, %tid.x;
    setp.ne.u32 other, thread, 0;
    @other bra DONE;
    sub.u32 at, $2, {BARRIERS};
INIT:
    mbarrier.init.shared::cta.b64 [at], 1;
    mbarrier.init.shared::cta.b64 [at + 8], {WARPS};
    add.u32 at, at, 16;
    add.u32 thread, thread, 1;
    setp.lt.u32 other, thread, {MAX_PIECES};
    @other bra INIT;
    fence.mbarrier_init.release.cluster;
    fence.proxy.async.shared::cta;
DONE:
}}""")


def wait_phase(barrier: str, parity: str) -> str:
    """PTX that waits for the phase of that parity; ends the kernel rather than hang."""
    return f"""
    mov.u64 deadline, 0;
WAIT:
    mbarrier.try_wait.parity.shared::cta.b64 done, [{barrier}], {parity};
    @done bra READY;
    mov.u64 now, %globaltimer;
    setp.eq.u64 done, deadline, 0;
    @done add.u64 deadline, now, {LOST_NS};
    setp.lt.u64 done, now, deadline;
    @done bra WAIT;
    trap;
READY:"""


# $0 a lane's number; $1 a lane; $2 end; $3 slot; $4 parity of the phase in which the slot became
# empty; $5 the piece's number; $6 address; $7 bytes. One thread asks.
ASK = tl.constexpr(f"""{{
    .reg .pred done;
    .reg .u32 thread, full, at;
    .reg .u64 now, deadline, policy;
    mov.b32 $0, $1;
    mov.u32 thread, %tid.x;
    setp.ne.u32 done, thread, 0;
    @done bra DONE;
    mad.lo.u32 full, $3, 16, $2;
    sub.u32 full, full, {BARRIERS};
    {wait_phase("full + 8", "$4")}
    add.u32 thread, $5, 1;
    st.shared.u32 [$2 + -{ASKED}], thread;
    mul.lo.u32 at, $3, {PIECE_BYTES};
    sub.u32 at, $2, at;
    sub.u32 at, at, {SUMS_AT + PIECE_BYTES};
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [full], $7;
    createpolicy.fractional.L2::evict_first.b64 policy, 1.0;
    cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint
        [at], [$6], $7, [full], policy;
DONE:
}}""")

# $0 … $15 what the piece has for this thread, line by line; $16 lane; $17 end; $18 slot; $19 parity
OUTPUTS = 4 * PIECE_LINES
TAKE = tl.constexpr(f"""{{
    .reg .pred done;
    .reg .u32 full, at;
    .reg .u64 now, deadline;
    mul.lo.u32 at, ${OUTPUTS + 2}, {PIECE_BYTES};
    sub.u32 at, ${OUTPUTS + 1}, at;
    mad.lo.u32 at, ${OUTPUTS}, 16, at;
    sub.u32 at, at, {SUMS_AT + PIECE_BYTES};
    mad.lo.u32 full, ${OUTPUTS + 2}, 16, ${OUTPUTS + 1};
    sub.u32 full, full, {BARRIERS};
    {wait_phase("full", f"${OUTPUTS + 3}")}
""" + "".join(f"""
    ld.shared.v4.b32 {{${4 * n}, ${4 * n + 1}, ${4 * n + 2}, ${4 * n + 3}}},
        [at + {LINE_BYTES * n}];
""" for n in range(PIECE_LINES)) + "}")

# $0 a lane's number; $1 a lane; $2 end; $3 slot. After the warp's last read of the slot.
RELEASE = tl.constexpr(f"""{{
    .reg .pred other;
    .reg .u32 lane, empty;
    mov.b32 $0, $1;
    bar.warp.sync 0xffffffff;
    mov.u32 lane, %laneid;
    mad.lo.u32 empty, $3, 16, $2;
    setp.ne.u32 other, lane, 0;
    @!other mbarrier.arrive.shared::cta.b64 _, [empty + {8 - BARRIERS}];
}}""")

# $0 a lane's number; $1 a lane; $2 end; $3 slots in use. One thread waits until every copy has
# landed: that of the last piece asked for, then those of the slots before it.
CLOSE = tl.constexpr(f"""{{
    .reg .pred done, more;
    .reg .u32 thread, full, number, slot, phase, left;
    .reg .u64 now, deadline;
    mov.b32 $0, $1;
    mov.u32 thread, %tid.x;
    setp.ne.u32 done, thread, 0;
    @done bra DONE;
    ld.shared.u32 number, [$2 + -{ASKED}];
    mov.u32 left, $3;
NEXT:
    sub.u32 number, number, 1;
    div.u32 phase, number, $3;
    mul.lo.u32 slot, phase, $3;
    sub.u32 slot, number, slot;
    and.b32 phase, phase, 1;
    mad.lo.u32 full, slot, 16, $2;
    sub.u32 full, full, {BARRIERS};
    {wait_phase("full", "phase")}
    sub.u32 left, left, 1;
    setp.ne.u32 more, left, 0;
    @more bra NEXT;
    sub.u32 full, $2, {BARRIERS};
INVALIDATE:
    mbarrier.inval.shared::cta.b64 [full];
    mbarrier.inval.shared::cta.b64 [full + 8];
    add.u32 full, full, 16;
    add.u32 left, left, 1;
    setp.lt.u32 more, left, {MAX_PIECES};
    @more bra INVALIDATE;
DONE:
}}""")


def ring_bytes(pieces: int) -> int:
    """Shared memory of a ring of so many pieces, on top of the compiler's; 0 for none."""
    return SUMS_AT + pieces * PIECE_BYTES if pieces else 0


@triton.jit
def ring_end():
    """The address one past the end of shared memory, from which all of the ring is addressed."""
    return tl.inline_asm_elementwise(END, "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def pieces_of(row):
    """A row's words FIRST_PIECE and PIECE_COUNT."""
    return tl.load(row + layout.STREAM_FIRST), tl.load(row + layout.STREAM_COUNT)


@triton.jit
def stream_of(segment, worker):
    """(a worker's pieces in the stream list, how many, the argument table)"""
    begin = words(tl.load(segment + layout.STREAM_BEGIN)) + worker
    first = tl.load(begin)
    pieces = counter_at(tl.load(segment + layout.STREAM)) + first * layout.STREAM_WORDS
    return (pieces, (tl.load(begin + 1) - first).to(tl.int32),
            words(tl.load(segment + layout.ARGUMENT_TABLE)))


@triton.jit
def piece_at(stream, place):
    """(address, bytes) of a worker's piece number `place`."""
    pieces, count, table = stream
    piece = pieces + place * layout.STREAM_WORDS
    word = tl.load(piece + layout.STREAM_PLACE)
    begin = (word // layout.STREAM_LENGTHS).to(tl.int64) * layout.STREAM_UNIT
    return (tl.load(table + tl.load(piece + layout.STREAM_TENSOR)) + begin,
            word % layout.STREAM_LENGTHS * layout.STREAM_UNIT)


@triton.jit
def place_after(place, stream):
    """The stream starts over at its end."""
    return tl.where(place + 1 < stream[1], place + 1, 0)


@triton.jit
def ask(end, number, address, size, PIECES: tl.constexpr):
    """Asks for piece `number` of the segment, once its slot is empty."""
    lane = tl.arange(0, EVERY_THREAD)
    # a phase before the first counts as over
    parity = (number // PIECES + 1) & 1
    tl.inline_asm_elementwise(ASK, "=&r,r,r,r,r,r,l,r",
                              [lane, end, number % PIECES, parity, number, address, size],
                              dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def take(end, number, PIECES: tl.constexpr):
    """Piece `number` of the segment, as int32 [threads] tensors, four per line."""
    lane = tl.arange(0, EVERY_THREAD)
    return tl.inline_asm_elementwise(
        TAKE, "=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r",
        [lane, end, number % PIECES, number // PIECES & 1],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32,
               tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32),
        is_pure=False, pack=1)


@triton.jit
def release(end, number, PIECES: tl.constexpr):
    """This warp has read piece `number`."""
    lane = tl.arange(0, EVERY_THREAD)
    tl.inline_asm_elementwise(RELEASE, "=&r,r,r,r", [lane, end, number % PIECES], dtype=tl.int32,
                              is_pure=False, pack=1)


@triton.jit
def make_barriers(end):
    """The barriers of all slots."""
    lane = tl.arange(0, EVERY_THREAD)
    tl.inline_asm_elementwise(OPEN, "=&r,r,r", [lane, end], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def await_copies(end, PIECES: tl.constexpr):
    """Waits for all that has been asked for, and ends the use of the barriers."""
    lane = tl.arange(0, EVERY_THREAD)
    tl.inline_asm_elementwise(CLOSE, "=&r,r,r,r", [lane, end, PIECES], dtype=tl.int32,
                              is_pure=False, pack=1)


@triton.jit
def open_ring(launch, worker, s, PIECES: tl.constexpr):
    """Before the first step of segment s: asks for its first pieces."""
    stream = stream_of(segment_at(launch, s), worker)
    if stream[1] > 0:
        end = ring_end()
        make_barriers(end)
        tl.debug_barrier()  # the slots' barriers are there before anyone waits at them
        for number in tl.range(0, PIECES, loop_unroll_factor=1):
            address, size = piece_at(stream, number % stream[1])
            ask(end, number, address, size, PIECES)


@triton.jit
def close_ring(launch, worker, s, PIECES: tl.constexpr):
    """After the last step, also of an aborted launch: nothing is written after this."""
    if stream_of(segment_at(launch, s), worker)[1] > 0:
        await_copies(ring_end(), PIECES)
        tl.debug_barrier()  # the next segment's barriers come after
