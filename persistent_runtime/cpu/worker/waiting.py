"""Polite, bounded waiting, and what the functions of a worker hand to each other."""

from __future__ import annotations

from collections import namedtuple

import numpy as np

from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.intrinsics import (
    keep_out_of_line,
    load_acquire,
    monotonic_ns,
    pause,
    pointer_to,
    store_release,
)
from persistent_runtime.cpu.worker.sleeping import sleep
from persistent_runtime.cpu.worker.slots import INT32, INT32_BYTES, INT64
from persistent_runtime.rows import layout

COUNTER_BYTES = layout.EVENT_STRIDE * INT32_BYTES
POLLS_PER_CLOCK_READ = 64

# Pointers to the launch, segment, step and stuck records, the address of scratch memory, the
# worker's number, the number of the step in the launch, from 1, and the address of the step's
# trace records, 0 for none.
State = namedtuple("State", "launch segment step stuck scratch worker epoch trace")

# What a wait has come to: polls, what the clock said when it was last read, 0 before that, and the
# nanoseconds that count as waiting.
Wait = namedtuple("Wait", "polls seen_ns waited_ns")


@device_jit
def counter_of(segment, event):
    """Address of an event's counter."""
    return segment[layout.EVENTS] + np.int64(event) * COUNTER_BYTES


@device_jit
def argument_values(segment, word):
    """Pointer to the int32 tensor whose address stands at a word of the argument table."""
    table = pointer_to(segment[layout.ARGUMENT_TABLE], INT64)
    return pointer_to(table[word], INT32)


@device_jit
def begin_wait():
    return Wait(np.int64(0), np.int64(0), np.int64(0))


@device_jit
def keep_waiting(state, wait, counter, target, pops):
    """One turn of a wait for a counter: whether to go on, and what the wait has come to. pops: 1
    where the worker serves the ready queue meanwhile. The first turn does not sleep: a task that
    was served just now may have been the last of the step."""
    launch = state.launch
    abort = launch[layout.CONTROL] + layout.ABORT * INT32_BYTES
    if load_acquire(abort) != 0:
        return False, wait
    polls = wait.polls + 1
    if polls > launch[layout.SPIN_LIMIT]:
        sleep(state, counter, target, pops)
    else:
        pause()
        if polls % POLLS_PER_CLOCK_READ != 0:
            return True, Wait(polls, wait.seen_ns, wait.waited_ns)
    return True, look_at_clock(launch, polls, wait)


@device_jit
def look_at_clock(launch, polls, wait):
    """What the wait has come to. One that has lasted too long aborts the launch."""
    keep_out_of_line()
    now, waited, timeout = monotonic_ns(), wait.waited_ns, launch[layout.TIMEOUT_NS]
    if wait.seen_ns != 0:
        # a long gap: a stopped process, a machine asleep, or others that have our core
        waited += min(now - wait.seen_ns, timeout // layout.GAPS_PER_TIMEOUT)
    if waited > timeout:
        store_release(launch[layout.CONTROL] + layout.ABORT * INT32_BYTES,
                      np.int32(layout.ABORT_TIMEOUT))
    return Wait(polls, now, waited)


@device_jit
def give_up(stuck, counter, target):
    """Leaves behind what this worker waited for."""
    stuck[layout.STUCK_SEEN] = load_acquire(counter)
    stuck[layout.STUCK_TARGET] = target


@device_jit
def await_count(state, counter, target):  # noqa: ANN201
    """Waits until the counter reaches `target`; False when the launch is aborted instead."""
    wait = begin_wait()
    while load_acquire(counter) < target:
        alive, wait = keep_waiting(state, wait, counter, target, 0)
        if not alive:
            give_up(state.stuck, counter, target)
            return False
    return True
