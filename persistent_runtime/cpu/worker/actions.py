"""Actions of a row: edges that read a tensor, and notifies that may push."""

from __future__ import annotations

import numpy as np

from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.intrinsics import (
    atomic_add,
    keep_out_of_line,
    load_acquire,
    pointer_to,
    store_release,
)
from persistent_runtime.cpu.worker.queue import notify
from persistent_runtime.cpu.worker.sleeping import anyone_sleeps, wake_for_count
from persistent_runtime.cpu.worker.slots import (
    INT32,
    INT32_BYTES,
)
from persistent_runtime.cpu.worker.waiting import (
    argument_values,
    counter_of,
)
from persistent_runtime.rows import layout

ACTION_BYTES = layout.ACTION_WORDS * INT32_BYTES


@device_jit
def action_at(segment, k):
    return pointer_to(segment[layout.ACTIONS] + np.int64(k) * ACTION_BYTES, INT32)


@device_jit
def named_event(segment, action, k):
    """(whether there is one, the event that element k of the action's tensor names)"""
    values = argument_values(segment, action[layout.ACTION_TENSOR])
    value = np.int64(values[action[layout.ACTION_FIRST] + k])
    event = action[layout.ACTION_EVENT] + value * action[layout.ACTION_STRIDE]
    return 0 <= value < action[layout.ACTION_EXTENT], event


@device_jit
def releasing_event(segment, action, tile):
    """(whether there is one, the event whose range in the CSR tensor holds the tile)"""
    indptr = argument_values(segment, action[layout.ACTION_TENSOR])
    low, high = np.int64(0), np.int64(action[layout.ACTION_LENGTH])
    if tile < indptr[low] or tile >= indptr[high]:
        return False, low
    while high - low > 1:
        middle = (low + high) // 2
        if indptr[middle] <= tile:
            low = middle
        else:
            high = middle
    return True, np.int64(action[layout.ACTION_EVENT]) + low


@device_jit
def count_dispatch(state, row):
    """Early push: this task has been popped and will run."""
    for k in range(row[layout.ACTION_BEGIN], row[layout.ACTION_END]):
        action = action_at(state.segment, k)
        if action[layout.ACTION] == layout.DISPATCH:
            notify(state.launch, state.segment, state.step, action[layout.ACTION_EVENT])


@device_jit
def act_after_task(state, row):
    """Clears first, then notifies: in this order they stand in the list."""
    segment = state.segment
    for k in range(row[layout.ACTION_BEGIN], row[layout.ACTION_END]):
        action = action_at(segment, k)
        kind = action[layout.ACTION]
        if kind == layout.CLEAR:
            for event in range(action[layout.ACTION_EVENT],
                               action[layout.ACTION_EVENT] + action[layout.ACTION_LENGTH]):
                store_release(counter_of(segment, event), np.int32(0))
        elif kind == layout.NOTIFY:
            notify(state.launch, segment, state.step, np.int64(action[layout.ACTION_EVENT]))
        elif kind == layout.NOTIFY_READ:
            for element in range(action[layout.ACTION_LENGTH]):
                is_there, event = named_event(segment, action, element)
                if is_there:
                    notify(state.launch, segment, state.step, event)


@device_jit
def notify_events(state, row):
    """The notifies that cannot push anything."""
    notifies = pointer_to(state.segment[layout.NOTIFIES], INT32)
    for k in range(row[layout.NOTIFY_BEGIN], row[layout.NOTIFY_END]):
        # release: publishes this tile's stores before the counter moves
        atomic_add(counter_of(state.segment, notifies[k]), np.int32(1))
    if anyone_sleeps(state.launch):
        wake_for_notifies(state, row)


@device_jit
def wake_for_notifies(state, row):
    """After the row's notifies."""
    keep_out_of_line()
    notifies = pointer_to(state.segment[layout.NOTIFIES], INT32)
    for k in range(row[layout.NOTIFY_BEGIN], row[layout.NOTIFY_END]):
        counter = counter_of(state.segment, notifies[k])
        wake_for_count(state.launch, counter, load_acquire(counter))


@device_jit
def count_task(state, row, what):
    """Adds to what this worker did of a call: POPPED or SKIPPED."""
    record = (state.worker * state.segment[layout.NUM_CALLS] + row[layout.CALL]) * (
        layout.TASK_COUNT_WORDS)
    counts = pointer_to(state.segment[layout.TASK_COUNTS], INT32)
    counts[record + what] += 1
