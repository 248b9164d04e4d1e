"""Actions of a row: edges that read a tensor, and notifies that may push.

The twin of cpu/worker/actions.py. What is compiled out of line (`noinline`) is rare: inlined, it
would take registers from the bodies. Memory order is that of sync.py and queue.py; counters are
cleared by plain stores of all lanes, which the barrier of the next notify orders before it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from persistent_runtime.gpu.addresses import counter_at, segment_at, setting, words
from persistent_runtime.gpu.worker.queue import (
    LANES,
    argument_values,
    counter_of,
    notify_lanes,
    target_of,
)
from persistent_runtime.gpu.worker.sync import LEAVE, READY, SERVE, wait_event
from persistent_runtime.rows import layout

SKIP = tl.constexpr(3)  # beside READY, SERVE and LEAVE: no event releases the row's tile


@triton.jit
def record_stuck(launch, worker, s, task, event, counter, target, epoch):
    """Leaves behind what this worker gave up waiting for; `check` of the host reads it."""
    stuck = words(tl.load(launch + layout.STUCK)) + worker * layout.STUCK_WORDS
    tl.store(stuck + layout.STUCK_SEGMENT, s)
    tl.store(stuck + layout.STUCK_TASK, task)
    tl.store(stuck + layout.STUCK_EVENT, event)
    tl.store(stuck + layout.STUCK_SEEN, tl.load(counter_at(counter), volatile=True))
    tl.store(stuck + layout.STUCK_TARGET, target)
    tl.store(stuck + layout.STUCK_STEP, epoch)


@triton.jit
def action_at(segment, k):
    return counter_at(tl.load(segment + layout.ACTIONS)) + k * layout.ACTION_WORDS


@triton.jit
def named_event(segment, action, k, present):
    """(whether there are some, the events that elements k of the action's tensor name)"""
    values = argument_values(segment, tl.load(action + layout.ACTION_TENSOR))
    value = tl.load(values + tl.load(action + layout.ACTION_FIRST) + k, mask=present, other=-1)
    event = (tl.load(action + layout.ACTION_EVENT)
             + value * tl.load(action + layout.ACTION_STRIDE))
    return (value >= 0) & (value < tl.load(action + layout.ACTION_EXTENT)), event


@triton.jit
def releasing_event(segment, action, tile):
    """(whether there is one, the event whose range in the CSR tensor holds the tile)"""
    indptr = argument_values(segment, tl.load(action + layout.ACTION_TENSOR))
    ranges = tl.load(action + layout.ACTION_LENGTH)
    low = tile * 0 - 1
    for first in tl.range(0, ranges + 1, LANES):
        k = first + tl.arange(0, LANES)
        begin = tl.load(indptr + k, mask=k <= ranges, other=2**31 - 1)
        low += tl.sum((begin <= tile).to(tl.int32), axis=0)
    return (low >= 0) & (low < ranges), tl.load(action + layout.ACTION_EVENT) + low


@triton.jit(noinline=True)
def await_actions(launch, worker, s, row, index, epoch, serving, 
                  INTERPRETED: tl.constexpr):
    """The waits of a row that read a tensor: READY, SERVE, LEAVE or SKIP. row: its address;
    serving: what wait_event calls worker."""
    segment = segment_at(launch, s)
    words_of_row = counter_at(row)
    k, end = (tl.load(words_of_row + layout.ACTION_BEGIN),
              tl.load(words_of_row + layout.ACTION_END))
    status = tl.full((), READY, tl.int32)
    while (k < end) & (status == READY):
        action = action_at(segment, k)
        kind = tl.load(action + layout.ACTION)
        element = k * 0
        elements = tl.where((kind == layout.DISPATCH) | (kind >= layout.AFTER_TASK), 0, 1)
        if kind == layout.AWAIT_READ:
            elements = tl.load(action + layout.ACTION_LENGTH)
        while (element < elements) & (status == READY):
            present, event = element >= 0, tl.load(action + layout.ACTION_EVENT)
            if kind == layout.AWAIT_READ:
                present, event = named_event(segment, action, element, present)
            if kind == layout.AWAIT_RELEASE:
                present, event = releasing_event(segment, action,
                                                 tl.load(words_of_row + layout.TILE))
                status = tl.where(present, READY, SKIP)
            if present:
                counter = counter_of(segment, event)
                target = target_of(segment, index, event, present)
                status = wait_event(launch, counter, target, serving, INTERPRETED)
                if status == LEAVE:
                    record_stuck(launch, worker, s, tl.load(words_of_row + layout.TASK), event,
                                 counter, target, epoch)
            element += 1
        k += 1
    return status


@triton.jit(noinline=True)
def act(launch, s, row, index, status):
    """The notifies among a row's actions: those of a task that has been popped (SERVE), or else
    those after the task. Clears come first: in this order they stand in the list."""
    segment = segment_at(launch, s)
    words_of_row = counter_at(row)
    k, end = (tl.load(words_of_row + layout.ACTION_BEGIN),
              tl.load(words_of_row + layout.ACTION_END))
    while k < end:
        action = action_at(segment, k)
        kind = tl.load(action + layout.ACTION)
        length = tl.where((kind == layout.DISPATCH) == (status == SERVE), 1, 0)
        if (kind == layout.CLEAR) | (kind == layout.NOTIFY_READ):
            length = length * tl.load(action + layout.ACTION_LENGTH)
        if (kind > layout.DISPATCH) & (kind < layout.AFTER_TASK):
            length = k * 0
        for first in tl.range(0, length, LANES):
            element = first + tl.arange(0, LANES)
            present = element < length
            if kind == layout.CLEAR:
                event = tl.load(action + layout.ACTION_EVENT) + element
                tl.store(counter_of(segment, event).to(tl.pointer_type(tl.int32)), 0,
                         mask=present)
            else:
                event = tl.load(action + layout.ACTION_EVENT) + element * 0
                if kind == layout.NOTIFY_READ:
                    present, event = named_event(segment, action, element, present)
                notify_lanes(launch, segment, index, event, present)
        k += 1


@triton.jit
def count_task(launch, worker, s, row, WHAT: tl.constexpr):
    """Adds to what this worker did of a call: POPPED or SKIPPED."""
    segment = segment_at(launch, s)
    call = worker * setting(segment, layout.NUM_CALLS) + tl.load(counter_at(row) + layout.CALL)
    counts = counter_at(tl.load(segment + layout.TASK_COUNTS))
    tl.atomic_add(counts + call * layout.TASK_COUNT_WORDS + WHAT, 1, sem="relaxed", scope="gpu")
