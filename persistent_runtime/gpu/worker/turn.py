"""One row of a worker's turn on the GPU: wait, run the tile, notify.

What is rarely needed is loaded again each time, and what steers the worker is made fresh, because a
register that lives while a tile runs is one that the tile has not.
"""

from __future__ import annotations

import triton
import triton.language as tl

from persistent_runtime.gpu.addresses import COUNTER_BYTES, counter_at, segment_at, words
from persistent_runtime.gpu.ring.ring import pieces_of
from persistent_runtime.gpu.worker.actions import SKIP, act, await_actions, count_task, record_stuck
from persistent_runtime.gpu.worker.queue import take_ticket
from persistent_runtime.gpu.worker.sync import (
    LEAVE,
    READY,
    fresh,
    fresh_words,
    globaltimer,
    notify_event,
    ticks,
    wait_event,
)
from persistent_runtime.rows import layout


@triton.jit
def wait_row(launch, worker, s, row, head, events, waits, index, epoch, serving,
             INTERPRETED: tl.constexpr):
    """Waits for all events of a row in the wait list."""
    _, _, w, wait_end = head
    status = tl.full((), READY, tl.int32)
    while (w < wait_end) & (status == READY):
        wait = counter_at(waits) + w * layout.WAIT_WORDS
        event = tl.load(wait + layout.WAIT_EVENT).to(tl.int64)
        target = tl.load(wait + layout.WAIT_COUNT) * (index + 1)
        counter = events + event * COUNTER_BYTES
        status = wait_event(launch, counter, target, serving, INTERPRETED)
        if status == LEAVE:
            record_stuck(launch, worker, s, tl.load(row + layout.TASK), event, counter, target,
                         epoch)
        w += 1
    return status


@triton.jit
def trace_record(launch, s, index, row):
    """Where a row's task leaves its trace record in step `index`."""
    segment = segment_at(launch, s)
    place = tl.load(segment + layout.NUM_TASKS) * index + tl.load(row + layout.TASK)
    return words(tl.load(segment + layout.TRACE)) + place * layout.TRACE_WORDS


@triton.jit
def record_begin(record, worker, turned, INTERPRETED: tl.constexpr):
    tl.store(record + layout.TRACE_WORKER, worker + 1)
    tl.store(record + layout.TRACE_WAIT, turned)
    tl.store(record + layout.TRACE_RUN, ticks(INTERPRETED))


@triton.jit
def record_end(record, INTERPRETED: tl.constexpr):
    tl.store(record + layout.TRACE_END, ticks(INTERPRETED))
    tl.store(record + layout.TRACE_END_NS, globaltimer(INTERPRETED))


@triton.jit
def load_head(rows, k, end):
    """The words of row k that decide what comes first; zeros beyond the end."""
    row = rows + k * layout.ROW_WORDS
    there = k < end
    return (tl.load(row + layout.KIND, mask=there, other=0),
            tl.load(row + layout.ARGUMENTS, mask=there, other=0),
            tl.load(row + layout.WAIT_BEGIN, mask=there, other=0),
            tl.load(row + layout.WAIT_END, mask=there, other=0))


@triton.jit
def has_actions(head):
    kind, _, _, _ = head
    return kind >= layout.ACTS


@triton.jit
def load_tile(row):
    """The coordinates of a row's tile: MAX_TILE_RANK words."""
    return (tl.load(row + layout.TILE), tl.load(row + (layout.TILE + 1)),
            tl.load(row + (layout.TILE + 2)), tl.load(row + (layout.TILE + 3)))


@triton.jit
def call_body(arguments, tile, step, KIND: tl.constexpr, FUNCTIONS: tl.constexpr,
              CONFIGURATIONS: tl.constexpr):
    # a variable, because Triton 3.6 does not take the tuple's element for a constant
    CONFIG: tl.constexpr = CONFIGURATIONS[KIND]
    FUNCTIONS[KIND](arguments, tile, step, CONFIG)


@triton.jit
def run_task(table, head, tile, step, FUNCTIONS: tl.constexpr, CONFIGURATIONS: tl.constexpr):
    """Dispatches on the device function: one branch per kind, never per call or tile."""
    # a task may read what this worker's last one wrote, without an event between the two
    tl.debug_barrier()
    kind, offset, _, _ = head
    arguments = words(table) + offset
    function = kind & (layout.ACTS - 1)
    for k in tl.static_range(len(FUNCTIONS)):
        if function == k:
            call_body(arguments, tile, step, k, FUNCTIONS, CONFIGURATIONS)


@triton.jit
def row_at(rows, k, popped):
    """Pointer to the queued row `popped`; to row k where that is -1."""
    return rows + tl.where(popped < 0, k, popped) * layout.ROW_WORDS


@triton.jit
def worker_that_serves(worker, popped, DYNAMIC: tl.constexpr):
    """The worker while it may serve the queue, else -1: a popped task is not put off."""
    serving = worker * 0 - 1
    if DYNAMIC:
        serving = tl.where(popped < 0, worker, -1)
    return serving


@triton.jit
def notify_row(events, notifies, n, end):
    """The notifies that cannot push anything."""
    while n < end:
        event = tl.load(counter_at(notifies) + n).to(tl.int64)
        notify_event(events + event * COUNTER_BYTES)
        n += 1


@triton.jit
def fresh_turn(turn, INTERPRETED: tl.constexpr):
    """`fresh` for what steers a worker: (launch, worker, segment's number, step's index, epoch)."""
    launch, worker, s, index, epoch = turn
    return (fresh_words(launch, INTERPRETED), fresh(worker, INTERPRETED), fresh(s, INTERPRETED),
            fresh(index, INTERPRETED), fresh(epoch, INTERPRETED))


@triton.jit
def fresh_step(step, INTERPRETED: tl.constexpr):
    """`fresh` for the words of the step record after the first."""
    row_base, logit_base, row_advance = step
    return (fresh(row_base, INTERPRETED), fresh(logit_base, INTERPRETED),
            fresh(row_advance, INTERPRETED))


@triton.jit
def try_row(turn, step, bases, k, end, popped, head, is_traced, FUNCTIONS: tl.constexpr,
            CONFIGURATIONS: tl.constexpr, RING: tl.constexpr, DYNAMIC: tl.constexpr,
            INTERPRETED: tl.constexpr):
    """Waits for the events of row k, or of the queued row `popped`, and runs it.

    Returns (what came of it, the next row of this worker's own, its head). SERVE: nothing yet,
    and the head is to be loaded again.
    """
    rows, events, waits, notifies, table = bases
    launch, worker, s, index, epoch = turn
    row = row_at(rows, k, popped)
    tile = load_tile(row)
    if RING:
        tile = tile + pieces_of(row)
    n, notify_end = tl.load(row + layout.NOTIFY_BEGIN), tl.load(row + layout.NOTIFY_END)
    # arrives while this row waits: a body is a call, before which everything has to be there
    own = (popped < 0).to(tl.int32)
    following = load_head(rows, k + own, end)
    turned = tl.full((), 0, tl.int64)
    if is_traced:
        turned = ticks(INTERPRETED)
    serving = worker_that_serves(worker, popped, DYNAMIC)
    status = wait_row(launch, worker, s, row, head, events, waits, index, epoch, serving,
                      INTERPRETED)
    if DYNAMIC:
        if has_actions(head) & (status == READY):
            status = await_actions(launch, worker, s, row.to(tl.int64), index, epoch, serving,
                                   INTERPRETED)
    k += ((status == READY) | (status == SKIP)).to(tl.int32) * own
    if status == READY:
        if is_traced:
            record_begin(trace_record(launch, s, index, row), worker, turned, INTERPRETED)
        place = tile
        if RING:
            place = tile + (segment_at(launch, s), worker)
        run_task(table, head, place, (index,) + step, FUNCTIONS, CONFIGURATIONS)
        launch, worker, s, index, epoch = fresh_turn(turn, INTERPRETED)
        row = row_at(rows, k - 1, popped)  # again, to keep registers free while the tile runs
        if DYNAMIC:
            if has_actions(head):
                act(launch, s, row.to(tl.int64), index, status)
        notify_row(events, notifies, n, notify_end)
        if is_traced:
            record_end(trace_record(launch, s, index, row), INTERPRETED)
        if DYNAMIC:
            if popped >= 0:
                count_task(launch, worker, s, row.to(tl.int64), layout.POPPED)
                take_ticket(launch, worker)
    if DYNAMIC:
        if status == SKIP:  # skipped tiles notify too: event counts include them
            count_task(launch, worker, s, row_at(rows, k - 1, popped).to(tl.int64), layout.SKIPPED)
            notify_row(events, notifies, n, notify_end)
    return status, k, following
