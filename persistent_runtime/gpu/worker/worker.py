"""The GPU worker: one CTA that runs all its tasks of a launch. The twin of cpu/worker/worker.py.

Counters are monotonic, with targets scaled by the step, and steps end in a barrier; that file has
the argument, sync.py and queue.py the memory order. A worker takes turns: each tries one row,
its next one or one that it has popped, or looks whether the step has ended; so the bodies stand in
the code once. A wait for a row of its own, or for the end of the step, is cut short by a task in
the slot of its ticket. All threads of a CTA take the same way through this file: what steers it is
either constant during the launch or made uniform by sync.py. What is rarely needed is loaded again
each time, because a register that lives while a tile runs is one that the tile has not.
"""

from __future__ import annotations

from pathlib import Path

import triton
import triton.language as tl

from persistent_runtime.gpu.addresses import counter_at, flag_at, segment_at, setting, words
from persistent_runtime.gpu.ring.ring import close_ring, open_ring
from persistent_runtime.gpu.worker.actions import SKIP, act, record_stuck
from persistent_runtime.gpu.worker.queue import popped_row, push_roots, take_ticket
from persistent_runtime.gpu.worker.sync import LEAVE, READY, SERVE, fresh, fresh_words, wait_event
from persistent_runtime.gpu.worker.turn import (
    fresh_step,
    fresh_turn,
    has_actions,
    load_head,
    row_at,
    try_row,
)
from persistent_runtime.rows import layout

REQUEST_BLOCK = tl.constexpr(128)
CLEAR_BLOCK = tl.constexpr(256)


def worker_source() -> str:
    """This file, for people who want to read what runs."""
    return Path(__file__).read_text(encoding="utf-8")


@triton.jit
def requests_left(launch):
    """How many requests have not met their end; 1 for a launch that runs all its steps."""
    address = tl.load(launch + layout.FINISHED)
    left = tl.full((), 1, tl.int32)
    if address != 0:
        left = tl.full((), 0, tl.int32)
        for first in tl.range(0, tl.load(launch + layout.NUM_REQUESTS), REQUEST_BLOCK):
            request = first + tl.arange(0, REQUEST_BLOCK)
            present = request < tl.load(launch + layout.NUM_REQUESTS)
            finished = tl.load(counter_at(address) + request, mask=present, other=1, volatile=True)
            left += tl.sum((finished == 0).to(tl.int32), axis=0)
    return left


@triton.jit
def next_segment(launch, s, index):
    """The segment of the step after step `index` of segment s; NUM_SEGMENTS if there is none."""
    index += 1
    while (s < setting(launch, layout.NUM_SEGMENTS)) & (
            index >= tl.load(segment_at(launch, s) + layout.STEPS, mask=s < setting(
                launch, layout.NUM_SEGMENTS), other=0)):
        s += 1
        index = index * 0
    return s


@triton.jit
def clear_left_over(segment):
    """Queued tasks that this step did not release forget the events that they have counted."""
    pending, left_over = (counter_at(tl.load(segment + layout.PENDING)),
                          counter_at(tl.load(segment + layout.LEFT_OVER)))
    for first in tl.range(0, setting(segment, layout.NUM_LEFT_OVER), CLEAR_BLOCK):
        k = first + tl.arange(0, CLEAR_BLOCK)
        present = k < setting(segment, layout.NUM_LEFT_OVER)
        tl.store(pending + tl.load(left_over + k, mask=present, other=0), 0, mask=present)


@triton.jit(noinline=True)
def open_step(launch, s, index, epoch, DYNAMIC: tl.constexpr):
    """Ends the step: what comes next, its first tasks, and the barrier. One worker does this."""
    # this is a call: all warps have read the caller's shared memory before it is written here
    tl.debug_barrier()
    if DYNAMIC:
        clear_left_over(segment_at(launch, s))
    s = next_segment(launch, s, index)
    goes_on = s < setting(launch, layout.NUM_SEGMENTS)
    aborted = tl.atomic_add(counter_at(flag_at(launch, layout.ABORT)), 0, sem="relaxed",
                            scope="gpu")
    goes_on = goes_on & (requests_left(launch) > 0) & (aborted == 0)
    following = segment_at(launch, s * goes_on.to(tl.int32))
    if goes_on:
        tl.store(counter_at(flag_at(launch, layout.OUTSTANDING)),
                 setting(launch, layout.NUM_WORKERS) + setting(following, layout.NUM_DUE))
    else:
        tl.store(counter_at(flag_at(launch, layout.STOP)), 1)
    tl.debug_barrier()
    # release: all of that comes before the barrier opens
    tl.atomic_xchg(counter_at(flag_at(launch, layout.EPOCH)), epoch, sem="release", scope="gpu")
    if DYNAMIC:
        if goes_on:
            push_roots(launch, following)


@triton.jit
def leave_step(launch, s, index, epoch, DYNAMIC: tl.constexpr):
    """A worker's rows or a queued task are done; who leaves nothing of the step opens the next."""
    tl.debug_barrier()  # this CTA's stores come before its leave
    left = tl.atomic_add(counter_at(flag_at(launch, layout.OUTSTANDING)), -1, sem="acq_rel",
                         scope="gpu")
    if left == 1:
        open_step(launch, s, index, epoch, DYNAMIC)


@triton.jit
def wait_end(launch, worker, s, epoch, serving, INTERPRETED: tl.constexpr):
    """Waits until step number `epoch` of the launch has ended, or for a queued task."""
    opened = flag_at(launch, layout.EPOCH)
    status = wait_event(launch, opened, epoch, serving, INTERPRETED)
    if status == LEAVE:
        record_stuck(launch, worker, s, -1, 0, opened, epoch, epoch)
    return status


@triton.jit
def run_step(turn, FUNCTIONS: tl.constexpr, CONFIGURATIONS: tl.constexpr, RING: tl.constexpr,
             DYNAMIC: tl.constexpr, INTERPRETED: tl.constexpr):
    """All that this worker does in one step; LEAVE when the launch is aborted."""
    launch, worker, s, index, epoch = turn
    segment = segment_at(launch, s)
    step = (setting(segment, layout.FIRST_ROW) + index * setting(segment, layout.ROW_STRIDE),
            setting(segment, layout.FIRST_LOGIT) + index * setting(segment, layout.LOGIT_STRIDE),
            setting(segment, layout.SEGMENT_ADVANCE))
    rows = counter_at(tl.load(segment + layout.ROWS))
    bases = (rows, tl.load(segment + layout.EVENTS), tl.load(segment + layout.WAITS),
             tl.load(segment + layout.NOTIFIES), tl.load(segment + layout.ARGUMENT_TABLE))
    row_begin = words(tl.load(segment + layout.ROW_BEGIN))
    k = tl.load(row_begin + worker).to(tl.int32)
    end = tl.load(row_begin + worker + 1).to(tl.int32)
    is_traced = index < setting(segment, layout.TRACE_STEPS)
    head = load_head(rows, k, end)
    popped = tl.full((), -1, tl.int32)  # the queued row whose turn it is instead of row k's
    status = tl.full((), READY, tl.int32)
    if DYNAMIC:
        leaves = k == end  # has to leave the step before this turn
        going = k >= 0
        while going:
            launch, worker, s, index, epoch = fresh_turn(turn, INTERPRETED)
            if leaves:
                leave_step(launch, s, index, epoch, DYNAMIC)
            leaves = k < 0
            if (k < end) | (popped >= 0):
                was_popped = popped >= 0
                status, k, head = try_row(
                    (launch, worker, s, index, epoch), fresh_step(step, INTERPRETED), bases, k,
                    end, popped, head, is_traced, FUNCTIONS, CONFIGURATIONS, RING, DYNAMIC,
                    INTERPRETED)
                is_done = (status == READY) | (status == SKIP)
                leaves = is_done & (was_popped | (k == end))
                popped = popped * 0 - 1
            else:
                status = wait_end(launch, worker, s, epoch, worker, INTERPRETED)
                going = status == SERVE
            if status == SERVE:
                popped = popped_row(launch, worker)
                head = load_head(rows, popped, popped + 1)
                if has_actions(head):
                    act(launch, s, row_at(rows, k, popped).to(tl.int64), index, status)
            going = going & (status != LEAVE)
    else:
        while (k < end) & (status == READY):
            status, k, head = try_row(
                fresh_turn(turn, INTERPRETED), fresh_step(step, INTERPRETED), bases, k, end,
                popped, head, is_traced, FUNCTIONS, CONFIGURATIONS, RING, DYNAMIC, INTERPRETED)
        if status == READY:
            leave_step(launch, s, index, epoch, DYNAMIC)
            status = wait_end(launch, worker, s, epoch, k * 0 - 1, INTERPRETED)
    return status


@triton.jit
def steps_of(launch, s, INTERPRETED: tl.constexpr):
    """Steps of segment s."""
    segment = segment_at(fresh_words(launch, INTERPRETED), fresh(s, INTERPRETED))
    return setting(segment, layout.STEPS)


@triton.jit
def begin_launch(launch, worker):
    """This worker's first ticket; worker 0 pushes the first tasks of the first step."""
    if tl.load(launch + layout.QUEUE_CAPACITY) > 0:
        take_ticket(launch, worker)
        s = next_segment(launch, worker * 0, worker * 0 - 1)
        if (worker == 0) & (s < setting(launch, layout.NUM_SEGMENTS)):
            push_roots(launch, segment_at(launch, s))
    tl.debug_barrier()  # the ticket comes before the first wait


@triton.jit
def run_worker(launch, first_worker, FUNCTIONS: tl.constexpr, CONFIGURATIONS: tl.constexpr,
               FINGERPRINT: tl.constexpr, RING: tl.constexpr, DYNAMIC: tl.constexpr,
               INTERPRETED: tl.constexpr):
    """Everything one worker does in a launch.

    launch: pointer to the launch record (int64). FUNCTIONS: a body per kind, each called as
    `body(arguments, tile, step, configuration)`. FINGERPRINT stands for their sources, which the
    compiler's cache does not see through a tuple. RING: slots of the ring that brings weights, 0
    for none. DYNAMIC: whether rows may be queued or have actions; what serves them takes registers.
    """
    worker = tl.program_id(0) + first_worker
    epoch = worker * 0
    s = worker * 0
    alive = worker >= 0
    if DYNAMIC:
        begin_launch(launch, worker)
    while (s < setting(fresh_words(launch, INTERPRETED), layout.NUM_SEGMENTS)) & alive:
        if RING:
            open_ring(launch, worker, s, RING)
        index = worker * 0
        while (index < steps_of(launch, s, INTERPRETED)) & alive:
            epoch += 1
            status = run_step(fresh_turn((launch, worker, s, index, epoch), INTERPRETED),
                              FUNCTIONS, CONFIGURATIONS, RING, DYNAMIC, INTERPRETED)
            stopped = tl.load(counter_at(flag_at(fresh_words(launch, INTERPRETED), layout.STOP)),
                              volatile=True)
            alive = (status == READY) & (stopped == 0)
            index += 1
        if RING:
            close_ring(launch, worker, s, RING)
        s += 1
