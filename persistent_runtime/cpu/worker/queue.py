"""The ready queue: pushes, pops, and what the last notify of an event sets off.

Memory order and bounds, in one place:
- a push reserves slots with a fetch-add on TAIL and stores (ticket + 1) << 32 | row with release.
  A pop loads the slot at HEAD with acquire, so that all that the pusher saw before is visible to
  the task, and takes it by moving HEAD on with a compare-and-swap. Nobody holds a ticket for what
  is not there yet: a worker that has lost its core holds no task but the one that it runs;
- every slot that a step fills is read before the step ends, and a step fills at most
  QUEUE_CAPACITY of them, so no slot is overwritten before it is read. The capacity is a power of
  two: tickets may wrap around int32;
- OUTSTANDING counts workers that have rows left and queued tasks that are not finished: those that
  every step runs from its beginning, so that a lost notify cannot end a step early; conditional
  ones from their push, before they are visible and while the pusher itself still counts. It falls
  to zero once, when nothing is left of the step.
"""

from __future__ import annotations

import numpy as np

from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.intrinsics import (
    atomic_add,
    pointer_to,
    store_release,
)
from persistent_runtime.cpu.worker.sleeping import (
    anyone_sleeps,
    fence,
    wake_for_count,
    wake_to_pop,
)
from persistent_runtime.cpu.worker.slots import (
    INT32,
    INT32_BYTES,
    publish,
)
from persistent_runtime.cpu.worker.waiting import (
    argument_values,
    counter_of,
)
from persistent_runtime.rows import layout

EVENT_BYTES = layout.EVENT_WORDS * INT32_BYTES
JOIN_BYTES = layout.JOIN_WORDS * INT32_BYTES
TRIGGER_BYTES = layout.TRIGGER_WORDS * INT32_BYTES


@device_jit
def wake_poppers(launch, count):
    """After `count` slots have been filled."""
    fence()
    if anyone_sleeps(launch):
        wake_to_pop(launch, count)


@device_jit
def push_rows(launch, row, count, conditional):
    """Pushes `count` rows that follow one another, so many of them conditional."""
    control = launch[layout.CONTROL]
    if conditional > 0:
        atomic_add(control + layout.OUTSTANDING * INT32_BYTES, np.int32(conditional))
    ticket = np.int64(atomic_add(control + layout.TAIL * INT32_BYTES, np.int32(count)))
    for k in range(count):
        publish(launch, ticket + k, row + k)
    wake_poppers(launch, count)


@device_jit
def push_roots(launch, segment):
    """Pushes what waits for nothing."""
    control = launch[layout.CONTROL]
    count = segment[layout.NUM_ROOTS]
    roots = pointer_to(segment[layout.ROOTS], INT32)
    ticket = np.int64(atomic_add(control + layout.TAIL * INT32_BYTES, np.int32(count)))
    for k in range(count):
        publish(launch, ticket + k, roots[k])
    wake_poppers(launch, count)


@device_jit
def join_record(segment, row):
    queued = row - segment[layout.FIRST_QUEUED]
    return pointer_to(segment[layout.JOINS] + queued * JOIN_BYTES, INT32)


@device_jit
def is_complete(segment, row):
    """Counts one event of a queued task; whether it was the last that the task waits for."""
    queued = row - segment[layout.FIRST_QUEUED]
    joins = join_record(segment, row)[layout.JOIN_COUNT]
    if joins == 1:
        return True
    pending = segment[layout.PENDING] + queued * INT32_BYTES
    if atomic_add(pending, np.int32(1)) + 1 < joins:
        return False
    # for the next step, in which alone anything can arrive here again
    store_release(pending, np.int32(0))
    return True


@device_jit
def push_consumers(launch, segment, record):
    """Pushes the complete ones among the tasks that wait for the event, in runs of rows."""
    consumers = pointer_to(segment[layout.CONSUMERS], INT32)
    first, count, conditional = np.int64(0), np.int64(0), np.int64(0)
    for k in range(record[layout.CONSUMER_BEGIN], record[layout.CONSUMER_END]):
        row = np.int64(consumers[k])
        if count > 0 and row != first + count:
            push_rows(launch, first, count, conditional)
            count, conditional = np.int64(0), np.int64(0)
        if is_complete(segment, row):
            if count == 0:
                first = row
            count += 1
            conditional += join_record(segment, row)[layout.JOIN_CONDITIONAL]
    if count > 0:
        push_rows(launch, first, count, conditional)


@device_jit
def push_released(launch, segment, trigger, event):
    """Pushes the tiles that the event releases: rows indptr[e] * inner … indptr[e + 1] * inner."""
    indptr = argument_values(segment, trigger[layout.TRIGGER_TENSOR])
    e = event - np.int64(trigger[layout.TRIGGER_EVENT])
    inner, row = np.int64(trigger[layout.TRIGGER_INNER]), np.int64(trigger[layout.TRIGGER_ROW])
    begin = max(np.int64(indptr[e]), 0) * inner
    end = min(np.int64(indptr[e + 1]), np.int64(trigger[layout.TRIGGER_TILES])) * inner
    first, count = row + begin, np.int64(0)
    for k in range(begin, end):
        if is_complete(segment, row + k):
            count += 1
            continue
        if count > 0:
            push_rows(launch, first, count, count)
        first, count = row + k + 1, np.int64(0)
    if count > 0:
        push_rows(launch, first, count, count)


@device_jit
def event_record(segment, event):
    return pointer_to(segment[layout.EVENT_RECORDS] + np.int64(event) * EVENT_BYTES, INT32)


@device_jit
def target_of(segment, step, record):
    """What a counter that is not cleared stands at when the event has fired in this step.

    Counters of events whose count is in a tensor are cleared by the task that writes it, before
    that task notifies anyone.
    """
    if record[layout.EVENT_COUNT] > 0:
        return np.int64(record[layout.EVENT_COUNT]) * (step[layout.STEP_INDEX] + 1)
    counts = argument_values(segment, record[layout.EVENT_COUNTS])
    return np.int64(counts[record[layout.EVENT_COUNT_INDEX]])


@device_jit
def notify(launch, segment, step, event):
    """Counts a notify; the one that completes the event pushes who waits for it."""
    record = event_record(segment, event)
    counter = counter_of(segment, event)
    # release: publishes this tile's stores before the counter moves; acquire: the last to notify
    # pushes on behalf of all others
    seen = np.int64(atomic_add(counter, np.int32(1))) + 1
    if record[layout.EVENT_RESETS] != 0:
        if seen != record[layout.EVENT_COUNT]:
            return
        # nobody polls it, and nobody can notify it before the next step
        store_release(counter, np.int32(0))
    else:
        if anyone_sleeps(launch):
            wake_for_count(launch, counter, seen)
        if seen != target_of(segment, step, record):
            return
    push_consumers(launch, segment, record)
    for k in range(record[layout.TRIGGER_BEGIN], record[layout.TRIGGER_END]):
        trigger = pointer_to(segment[layout.TRIGGERS] + k * TRIGGER_BYTES, INT32)
        push_released(launch, segment, trigger, np.int64(event))
