"""Wait and notify: the only places where one worker sees what another has done.

Memory order, thread by thread. A notify is a CTA barrier and then a release add by one thread: the
barrier orders the stores of all threads of the CTA before that thread, and the release makes them
visible to whoever acquires the counter's new value (release is cumulative). The barrier is written
out because Triton before 3.9 puts none in front of an atomic. A wait is an acquire load by one
thread and then a CTA barrier, which hands what that thread acquired to all the others. The poll is
inline PTX, because the compiler deletes a plain load in a loop and an atomic costs two CTA
barriers per poll.

The interpreter runs the same protocol between processes, on atomics of the host.
"""

from __future__ import annotations

import time

import triton
import triton.language as tl

from persistent_runtime.gpu.addresses import counter_at, flag_at, ticket_of, words
from persistent_runtime.rows import layout

READY, SERVE, LEAVE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)  # what a wait came to
POLL_AGAIN = tl.constexpr(-1)  # of the interpreter's
PAUSE_S = 2e-3  # a poll costs an interpreted worker about as much

# $0 what it came to; $1 counter (address); $2 launch record; $3 target; $4 the worker whose ticket
# is looked at as well, or -1. All else is loaded when the first poll has failed, and the deadline
# starts then: the device's clock and all its workers go on while the host is stopped, so that all
# of the time counts. A filled slot may be of the next step: then the counter, which is that of the
# step's end, has reached its target. What the polling thread found, a barrier that reduces a
# predicate tells all others, who have nothing to add; one is enough for what is READY.
POLL = tl.constexpr(f"""{{
    .reg .pred done;
    .reg .s32 seen;
    .reg .u32 thread, aborted;
    .reg .u64 abort, now, deadline, ticket, slot, number;
    .reg .b64 word;
    mov.b32 $0, {READY.value};
    mov.u32 thread, %tid.x;
    setp.ne.u32 done, thread, 0;
    @done bra DONE;
    ld.acquire.gpu.global.s32 seen, [$1];
    setp.ge.s32 done, seen, $3;
    @done bra DONE;
    mov.u64 deadline, %globaltimer;
    ld.relaxed.gpu.global.u64 now, [$2 + {8 * layout.TIMEOUT_NS}];
    add.u64 deadline, deadline, now;
    ld.relaxed.gpu.global.u64 ticket, [$2 + {8 * layout.CONTROL}];
    add.u64 abort, ticket, {4 * layout.ABORT};
    mov.u64 slot, 0;
    setp.lt.s32 done, $4, 0;
    @done bra POLL;
    mad.wide.s32 ticket, $4, {4 * layout.EVENT_STRIDE}, ticket;
    ld.relaxed.gpu.global.u64 slot, [ticket + {4 * layout.CONTROL_WORDS + 8 * layout.SLOT}];
    ld.relaxed.gpu.global.u64 number,
        [ticket + {4 * layout.CONTROL_WORDS + 8 * layout.SLOT_NUMBER}];
POLL:
    ld.acquire.gpu.global.s32 seen, [$1];
    setp.ge.s32 done, seen, $3;
    @done bra DONE;
    setp.eq.u64 done, slot, 0;
    @done bra EMPTY;
    ld.acquire.gpu.global.b64 word, [slot];
    shr.u64 word, word, 32;
    setp.ne.u64 done, word, number;
    @done bra EMPTY;
    ld.acquire.gpu.global.s32 seen, [$1];
    setp.ge.s32 done, seen, $3;
    @done bra DONE;
    mov.b32 $0, {SERVE.value};
    bra DONE;
EMPTY:
    ld.relaxed.gpu.global.u32 aborted, [abort];
    setp.ne.u32 done, aborted, 0;
    @done bra GIVE_UP;
    mov.u64 now, %globaltimer;
    setp.lt.u64 done, now, deadline;
    @done bra POLL;
    st.relaxed.gpu.global.u32 [abort], {layout.ABORT_TIMEOUT};
GIVE_UP:
    mov.b32 $0, {LEAVE.value};
DONE:
    setp.ne.s32 done, $0, {READY.value};
    barrier.cta.red.or.pred done, 0, done;
    @!done bra TOLD;
    setp.eq.s32 done, $0, {LEAVE.value};
    barrier.cta.red.or.pred done, 0, done;
    selp.b32 $0, {LEAVE.value}, {SERVE.value}, done;
TOLD:
}}""")


def interpreter_clock_ns() -> int:
    return time.monotonic_ns()


def interpreter_pause() -> None:
    time.sleep(PAUSE_S)


# Only interpreted branches call these; the mark lets the compiler's search for dependencies pass.
for _function in (interpreter_clock_ns, interpreter_pause):
    _function.__triton_builtin__ = True


@triton.jit
def fresh(value, INTERPRETED: tl.constexpr):
    """The same int32, as if it had just been read: what is made of it cannot be made any earlier.

    The compiler takes sums and conversions of what a loop does not change out of that loop, all the
    way to the kernel's beginning, where each is a register that no tile can have.
    """
    if not INTERPRETED:
        value = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [value], dtype=tl.int32,
                                          is_pure=False, pack=1)
    return value


@triton.jit
def fresh_words(pointer, INTERPRETED: tl.constexpr):
    """`fresh` for a pointer to int64 words."""
    if not INTERPRETED:
        address = tl.inline_asm_elementwise("mov.b64 $0, $1;", "=l,l", [pointer.to(tl.int64)],
                                            dtype=tl.int64, is_pure=False, pack=1)
        pointer = words(address)
    return pointer


@triton.jit
def wait_event(launch, counter, target, worker, INTERPRETED: tl.constexpr):
    """Waits until the int32 at address `counter` is at least `target` (READY), the slot of this
    worker's ticket is filled (SERVE), or the launch is aborted (LEAVE). Uniform over the CTA.

    worker: -1 where the queue is not to be looked at. Raises the abort flag itself when the
    launch's timeout is over.
    """
    if INTERPRETED:
        status = poll_once(launch, counter, target, worker)
        timeout = tl.load(launch + layout.TIMEOUT_NS)
        seen, waited = interpreter_clock_ns(), 0
        while status == POLL_AGAIN:
            interpreter_pause()
            now = interpreter_clock_ns()
            waited += tl.minimum(now - seen, timeout // layout.GAPS_PER_TIMEOUT)
            seen = now
            if waited > timeout:
                tl.atomic_cas(counter_at(flag_at(launch, layout.ABORT)), 0, layout.ABORT_TIMEOUT,
                              sem="relaxed")
            status = poll_once(launch, counter, target, worker)
    else:
        status = tl.inline_asm_elementwise(
            POLL, "=&r,l,l,r,r", [counter, launch.to(tl.int64), target, worker], dtype=tl.int32,
            is_pure=False, pack=1)
        # hands what the polling thread acquired to every thread of the CTA
        tl.debug_barrier()
    return status


@triton.jit
def poll_once(launch, counter, target, worker):
    """One turn of POLL, for the interpreter."""
    status = tl.full((), READY, tl.int32)
    if tl.atomic_add(counter_at(counter), 0, sem="acquire") < target:
        status = tl.full((), POLL_AGAIN, tl.int32)
        ticket = ticket_of(launch, worker)
        slot = tl.load(ticket + layout.SLOT, mask=worker >= 0, other=0)
        if slot != 0:
            number = tl.atomic_add(words(slot), 0, sem="acquire") >> 32
            if (number & 0xFFFFFFFF) == tl.load(ticket + layout.SLOT_NUMBER):
                status = tl.full((), SERVE, tl.int32)
                if tl.atomic_add(counter_at(counter), 0, sem="acquire") >= target:
                    status = tl.full((), READY, tl.int32)
        if status == POLL_AGAIN:
            if tl.atomic_add(counter_at(flag_at(launch, layout.ABORT)), 0, sem="relaxed") != 0:
                status = tl.full((), LEAVE, tl.int32)
    return status


@triton.jit
def notify_event(counter):
    """Adds 1 to the int32 at address `counter` after everything this CTA has stored."""
    tl.debug_barrier()  # all threads' stores come before the one thread that releases them
    # release: publishes this tile's stores before the counter moves
    tl.atomic_add(counter_at(counter), 1, sem="release", scope="gpu")


@triton.jit
def globaltimer(INTERPRETED: tl.constexpr):
    """Nanoseconds of the device's clock, one for all its workers; the host's if interpreted."""
    if INTERPRETED:
        now = interpreter_clock_ns()
    else:
        now = tl.inline_asm_elementwise("mov.u64 $0, %globaltimer;", "=l", [],
                                        dtype=tl.int64, is_pure=False, pack=1)
    return now


@triton.jit
def ticks(INTERPRETED: tl.constexpr):
    """This worker's own clock: cycles of its multiprocessor, or nanoseconds if interpreted."""
    if INTERPRETED:
        now = interpreter_clock_ns()
    else:
        now = tl.inline_asm_elementwise("mov.u64 $0, %clock64;", "=l", [],
                                        dtype=tl.int64, is_pure=False, pack=1)
    return now
