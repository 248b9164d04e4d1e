"""The CPU worker: one C call per thread that runs all its tasks of a launch.

Memory order, in one place:
- a notify is an acquire-release add: it publishes this tile's stores before the counter moves;
- a wait loads the counter with acquire: what was published before is visible to the tile;
- counters never go back. In step s of a segment an event has fired when its counter has reached
  count * (s + 1), so no worker can reset what another still waits for. The end of a step is a
  barrier, hence no notify of step s + 1 can reach a counter that step s still uses.
- the last worker to arrive at the barrier alone decides whether the launch goes on, and publishes
  that before it opens the barrier: all workers leave after the same step.
"""

from __future__ import annotations

import numpy as np
from numba import types

from persistent_runtime import layout
from persistent_runtime.cpu.intrinsics import (
    address_of,
    atomic_add,
    call_device_function,
    device_jit,
    load_acquire,
    monotonic_ns,
    pause,
    pointer_to,
    store_release,
    yield_thread,
)

WORKER_SIGNATURE = types.void(types.CPointer(types.int64), types.int64)
INT32_BYTES, INT64_BYTES = 4, 8
COUNTER_BYTES = layout.EVENT_STRIDE * INT32_BYTES
ROW_BYTES = layout.ROW_WORDS * INT32_BYTES
POLLS_PER_CLOCK_READ = 64
_INT32, _INT64 = np.int32(0), np.int64(0)


@device_jit
def await_count(launch, stuck, counter, target):  # noqa: ANN201
    """Polls until the counter reaches `target`; False when the launch is aborted instead."""
    control = launch[layout.CONTROL]
    spin_limit = launch[layout.SPIN_LIMIT]
    deadline = np.int64(0)
    polls = np.int64(0)
    while load_acquire(counter) < target:
        if load_acquire(control + layout.ABORT * INT32_BYTES) != 0:
            stuck[layout.STUCK_SEEN] = load_acquire(counter)
            stuck[layout.STUCK_TARGET] = target
            return False
        polls += 1
        if polls < spin_limit:
            pause()
        else:
            yield_thread()
        if polls % POLLS_PER_CLOCK_READ == 0:
            now = monotonic_ns()
            if deadline == 0:
                deadline = now + launch[layout.TIMEOUT_NS]
            elif now > deadline:
                store_release(control + layout.ABORT * INT32_BYTES, np.int32(layout.ABORT_TIMEOUT))
    return True


@device_jit
def all_finished(launch):
    """Whether every request has met its end; a launch without requests runs all its steps."""
    if launch[layout.FINISHED] == 0:
        return False
    finished = pointer_to(launch[layout.FINISHED], _INT32)
    for request in range(launch[layout.NUM_REQUESTS]):
        if finished[request] == 0:
            return False
    return True


@device_jit
def end_step(launch, stuck, epoch):
    """Barrier after step number `epoch` of the launch; True while the launch goes on."""
    control = launch[layout.CONTROL]
    workers = launch[layout.NUM_WORKERS]
    stuck[layout.STUCK_TASK] = -1
    arrived = atomic_add(control + layout.ARRIVALS * INT32_BYTES, np.int32(1))
    epoch_counter = control + layout.EPOCH * INT32_BYTES
    if arrived == epoch * workers - 1:
        if all_finished(launch):
            store_release(control + layout.STOP * INT32_BYTES, np.int32(1))
        store_release(epoch_counter, np.int32(epoch))
    elif not await_count(launch, stuck, epoch_counter, epoch):
        return False
    return load_acquire(control + layout.STOP * INT32_BYTES) == 0


@device_jit
def run_row(launch, segment, row, step, stuck, scratch):
    """Waits, runs one task and notifies; False when the launch is aborted."""
    waits = pointer_to(segment[layout.WAITS], _INT32)
    notifies = pointer_to(segment[layout.NOTIFIES], _INT32)
    events = segment[layout.EVENTS]
    stuck[layout.STUCK_TASK] = row[layout.TASK]
    for k in range(row[layout.WAIT_BEGIN], row[layout.WAIT_END]):
        event = np.int64(waits[k * layout.WAIT_WORDS + layout.WAIT_EVENT])
        count = np.int64(waits[k * layout.WAIT_WORDS + layout.WAIT_COUNT])
        stuck[layout.STUCK_EVENT] = event
        if not await_count(launch, stuck, events + event * COUNTER_BYTES,
                           count * (step[layout.STEP_INDEX] + 1)):
            return False
    functions = pointer_to(launch[layout.FUNCTIONS], _INT64)
    arguments = segment[layout.ARGUMENT_TABLE] + np.int64(row[layout.ARGUMENTS]) * INT64_BYTES
    call_device_function(functions[row[layout.KIND]], arguments,
                         address_of(row) + layout.TILE * INT32_BYTES, address_of(step), scratch)
    for k in range(row[layout.NOTIFY_BEGIN], row[layout.NOTIFY_END]):
        # release: publishes this tile's stores before the counter moves
        atomic_add(events + np.int64(notifies[k]) * COUNTER_BYTES, np.int32(1))
    return True


@device_jit
def run_step(launch, segment, worker, step, stuck, scratch):
    """All of this worker's tasks of one step."""
    abort = launch[layout.CONTROL] + layout.ABORT * INT32_BYTES
    row_begin = pointer_to(segment[layout.ROW_BEGIN], _INT64)
    for k in range(row_begin[worker], row_begin[worker + 1]):
        row = pointer_to(segment[layout.ROWS] + k * ROW_BYTES, _INT32)
        if not run_row(launch, segment, row, step, stuck, scratch):
            return False
        if load_acquire(abort) != 0:
            return False
    return True


def run_worker(launch, worker):
    """Everything one worker does in a launch: `void(int64* launch record, int64 worker)`."""
    step = pointer_to(launch[layout.STEP_RECORDS] + worker * layout.STEP_WORDS * INT64_BYTES,
                      _INT64)
    stuck = pointer_to(launch[layout.STUCK] + worker * layout.STUCK_WORDS * INT64_BYTES, _INT64)
    scratch = launch[layout.SCRATCH] + worker * launch[layout.SCRATCH_BYTES]
    epoch = np.int64(0)
    for s in range(launch[layout.NUM_SEGMENTS]):
        segment = pointer_to(launch[layout.SEGMENTS] + s * layout.SEGMENT_WORDS * INT64_BYTES,
                             _INT64)
        stuck[layout.STUCK_SEGMENT] = s
        step[layout.ROW_ADVANCE] = segment[layout.SEGMENT_ADVANCE]
        for index in range(segment[layout.STEPS]):
            epoch += 1
            stuck[layout.STUCK_STEP] = epoch
            step[layout.STEP_INDEX] = index
            step[layout.ROW_BASE] = segment[layout.FIRST_ROW] + index * segment[layout.ROW_STRIDE]
            step[layout.LOGIT_BASE] = (
                segment[layout.FIRST_LOGIT] + index * segment[layout.LOGIT_STRIDE])
            if not run_step(launch, segment, worker, step, stuck, scratch):
                return
            if not end_step(launch, stuck, epoch):
                return
