"""The CPU worker: one C call per thread that runs all its tasks of a launch.

A worker runs its rows in order; whenever it waits, for an event or for the end of the step, it
serves the ready queue (queue.py). Memory order, in one place:
- a notify is an acquire-release add: it publishes this tile's stores before the counter moves;
- a wait loads the counter with acquire: what was published before is visible to the tile;
- counters never go back while anyone polls them. In step s of a segment an event has fired when
  its counter has reached count * (s + 1), so no worker can reset what another still waits for. The
  end of a step is a barrier, hence no notify of step s + 1 can reach a counter that step s uses;
- one worker brings OUTSTANDING to zero. It alone decides whether the launch goes on, and publishes
  that before it opens the barrier: all workers leave after the same step. The first tasks of the
  next step are pushed after that: a worker that finds one in its slot also sees the barrier open.
"""

from __future__ import annotations

import numpy as np
from numba import types

from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.intrinsics import (
    address_of,
    atomic_add,
    call_device_function,
    load_acquire,
    pointer_to,
    store_release,
)
from persistent_runtime.cpu.worker.actions import (
    act_after_task,
    action_at,
    count_dispatch,
    count_task,
    named_event,
    notify_events,
    releasing_event,
)
from persistent_runtime.cpu.worker.queue import event_record, push_roots, target_of
from persistent_runtime.cpu.worker.sleeping import give_way, wake_for_stored
from persistent_runtime.cpu.worker.slots import (
    INT32,
    INT32_BYTES,
    INT64,
    INT64_BYTES,
    first_task,
    take_task,
)
from persistent_runtime.cpu.worker.tracing import record_task, trace_clock, trace_of_step
from persistent_runtime.cpu.worker.waiting import (
    State,
    await_count,
    begin_wait,
    counter_of,
    give_up,
    keep_waiting,
)
from persistent_runtime.rows import layout

WORKER_SIGNATURE = types.void(types.CPointer(types.int64), types.int64)
ROW_BYTES = layout.ROW_WORDS * INT32_BYTES
IDLE, BEATEN, RAN, LAST, ABORTED = 0, 1, 2, 3, 4  # what came of serving the queue
READY, SKIP, LEAVE = 0, 1, 2  # what a row does after its waits


@device_jit
def all_finished(launch):
    """Whether every request has met its end; a launch without requests runs all its steps."""
    if launch[layout.FINISHED] == 0:
        return False
    finished = pointer_to(launch[layout.FINISHED], INT32)
    for request in range(launch[layout.NUM_REQUESTS]):
        if finished[request] == 0:
            return False
    return True


@device_jit
def call_body(state, row):
    """Runs the row's tile."""
    functions = pointer_to(state.launch[layout.FUNCTIONS], INT64)
    arguments = (state.segment[layout.ARGUMENT_TABLE]
                 + np.int64(row[layout.ARGUMENTS]) * INT64_BYTES)
    call_device_function(functions[row[layout.KIND] & (layout.ACTS - 1)], arguments,
                         address_of(row) + layout.TILE * INT32_BYTES, address_of(state.step),
                         state.scratch)


@device_jit
def row_at(segment, k):
    return pointer_to(segment[layout.ROWS] + np.int64(k) * ROW_BYTES, INT32)


@device_jit
def run_popped(state, row):
    """One queued task. Only with early push does it wait, for tasks that are dispatched."""
    stuck = state.stuck
    stuck[layout.STUCK_TASK] = row[layout.TASK]
    turned = trace_clock(state)
    count_dispatch(state, row)
    waits = pointer_to(state.segment[layout.WAITS], INT32)
    for k in range(row[layout.WAIT_BEGIN], row[layout.WAIT_END]):
        event = np.int64(waits[k * layout.WAIT_WORDS + layout.WAIT_EVENT])
        count = np.int64(waits[k * layout.WAIT_WORDS + layout.WAIT_COUNT])
        stuck[layout.STUCK_EVENT] = event
        if not await_count(state, counter_of(state.segment, event),
                           count * (state.step[layout.STEP_INDEX] + 1)):
            return False
    ran = trace_clock(state)
    call_body(state, row)
    act_after_task(state, row)
    notify_events(state, row)
    count_task(state, row, layout.POPPED)
    record_task(state, row, turned, ran)
    return True


@device_jit
def leave_step(launch):
    """A worker's rows or a queued task are done; whether nothing of the step is left."""
    control = launch[layout.CONTROL]
    return atomic_add(control + layout.OUTSTANDING * INT32_BYTES, np.int32(-1)) == 1


@device_jit
def serve(state):
    """Runs the oldest task of the queue, if there is one and it is of this step."""
    launch = state.launch
    ticket, is_there, k = first_task(launch)
    if not is_there:
        return IDLE
    if load_acquire(launch[layout.CONTROL] + layout.EPOCH * INT32_BYTES) >= state.epoch:
        return IDLE
    if not take_task(launch, ticket):
        return BEATEN
    if not run_popped(state, row_at(state.segment, k)):
        return ABORTED
    if leave_step(launch):
        return LAST
    give_way(state)
    return RAN


@device_jit
def await_event(state, event, target):
    """Waits for a counter and serves the queue meanwhile; False when the launch is aborted."""
    launch, stuck = state.launch, state.stuck
    counter = counter_of(state.segment, event)
    stuck[layout.STUCK_EVENT] = event
    if launch[layout.QUEUE_CAPACITY] == 0:
        return await_count(state, counter, target)
    task = stuck[layout.STUCK_TASK]
    wait = begin_wait()
    while load_acquire(counter) < target:
        outcome = serve(state)
        if outcome == ABORTED:
            return False
        if outcome != IDLE:
            wait = begin_wait()
            stuck[layout.STUCK_TASK], stuck[layout.STUCK_EVENT] = task, event
        alive, wait = keep_waiting(state, wait, counter, target, 1)
        if not alive:
            give_up(stuck, counter, target)
            return False
    return True


@device_jit
def await_actions(state, row):
    """The waits of a row that read a tensor."""
    segment, step = state.segment, state.step
    for k in range(row[layout.ACTION_BEGIN], row[layout.ACTION_END]):
        action = action_at(segment, k)
        kind = action[layout.ACTION]
        if kind >= layout.AFTER_TASK:
            break
        count = np.int64(1)
        if kind == layout.AWAIT_READ:
            count = np.int64(action[layout.ACTION_LENGTH])
        for element in range(count):
            is_there, event = True, np.int64(action[layout.ACTION_EVENT])
            if kind == layout.AWAIT_READ:
                is_there, event = named_event(segment, action, element)
            elif kind == layout.AWAIT_RELEASE:
                is_there, event = releasing_event(segment, action, row[layout.TILE])
                if not is_there:
                    return SKIP
            if is_there and not await_event(
                    state, event, target_of(segment, step, event_record(segment, event))):
                return LEAVE
    return READY


@device_jit
def await_row(state, row):
    """All waits of a row: whether it is READY, to SKIP, or the launch is aborted."""
    waits = pointer_to(state.segment[layout.WAITS], INT32)
    for k in range(row[layout.WAIT_BEGIN], row[layout.WAIT_END]):
        event = np.int64(waits[k * layout.WAIT_WORDS + layout.WAIT_EVENT])
        count = np.int64(waits[k * layout.WAIT_WORDS + layout.WAIT_COUNT])
        if not await_event(state, event, count * (state.step[layout.STEP_INDEX] + 1)):
            return LEAVE
    if row[layout.ACTION_BEGIN] < row[layout.ACTION_END]:
        return await_actions(state, row)
    return READY


@device_jit
def run_row(state, row):
    """Waits, runs one task and notifies; False when the launch is aborted."""
    state.stuck[layout.STUCK_TASK] = row[layout.TASK]
    turned = trace_clock(state)
    decision = await_row(state, row)
    if decision == LEAVE:
        return False
    if decision == SKIP:  # skipped tiles notify too: event counts include them
        count_task(state, row, layout.SKIPPED)
        notify_events(state, row)
        return True
    ran = trace_clock(state)
    call_body(state, row)
    act_after_task(state, row)
    notify_events(state, row)
    record_task(state, row, turned, ran)
    return True


@device_jit
def run_rows(state):
    """All rows of this worker for one step."""
    segment = state.segment
    abort = state.launch[layout.CONTROL] + layout.ABORT * INT32_BYTES
    row_begin = pointer_to(segment[layout.ROW_BEGIN], INT64)
    for k in range(row_begin[state.worker], row_begin[state.worker + 1]):
        if not run_row(state, row_at(segment, k)):
            return False
        if load_acquire(abort) != 0:
            return False
    return True


@device_jit
def open_step(state, following):
    """Ends the step: what comes next, its first tasks, and the barrier. One worker does this."""
    launch, segment = state.launch, state.segment
    control = launch[layout.CONTROL]
    pending = pointer_to(segment[layout.PENDING], INT32)
    left_over = pointer_to(segment[layout.LEFT_OVER], INT32)
    for k in range(segment[layout.NUM_LEFT_OVER]):
        pending[left_over[k]] = 0
    goes_on = following != 0 and not all_finished(launch)
    outstanding = launch[layout.NUM_WORKERS]
    if goes_on:
        outstanding += pointer_to(following, INT64)[layout.NUM_DUE]
    else:
        store_release(control + layout.STOP * INT32_BYTES, np.int32(1))
    store_release(control + layout.OUTSTANDING * INT32_BYTES, np.int32(outstanding))
    opened = control + layout.EPOCH * INT32_BYTES
    store_release(opened, np.int32(state.epoch))
    wake_for_stored(launch, opened, state.epoch)
    if goes_on:
        push_roots(launch, pointer_to(following, INT64))


@device_jit
def end_step(state, following):
    """Barrier after a step; serves the queue until nothing is left of it. True while the launch
    goes on. `following`: address of the next step's segment record, 0 after the last."""
    launch, stuck = state.launch, state.stuck
    control = launch[layout.CONTROL]
    opened = control + layout.EPOCH * INT32_BYTES
    stuck[layout.STUCK_TASK] = -1
    is_last = leave_step(launch)
    wait = begin_wait()
    while not is_last and load_acquire(opened) < state.epoch:
        if launch[layout.QUEUE_CAPACITY] > 0:
            outcome = serve(state)
            if outcome == ABORTED:
                return False
            if outcome != IDLE:
                is_last = outcome == LAST
                wait = begin_wait()
                stuck[layout.STUCK_TASK] = -1
        alive, wait = keep_waiting(state, wait, opened, state.epoch,
                                   launch[layout.QUEUE_CAPACITY])
        if not alive:
            give_up(stuck, opened, state.epoch)
            return False
    if is_last:
        open_step(state, following)
    return load_acquire(control + layout.STOP * INT32_BYTES) == 0


@device_jit
def segment_address(launch, s):
    return launch[layout.SEGMENTS] + s * layout.SEGMENT_WORDS * INT64_BYTES


@device_jit
def next_segment(launch, s, index):
    """Address of the segment record of the step after step `index` of segment s, 0 if none."""
    while s < launch[layout.NUM_SEGMENTS]:
        if index + 1 < pointer_to(segment_address(launch, s), INT64)[layout.STEPS]:
            return segment_address(launch, s)
        s, index = s + 1, np.int64(-1)
    return np.int64(0)


@device_jit
def begin_launch(launch, worker):
    """Worker 0 pushes the first tasks of the first step."""
    first = next_segment(launch, np.int64(0), np.int64(-1))
    if worker == 0 and launch[layout.QUEUE_CAPACITY] > 0 and first != 0:
        push_roots(launch, pointer_to(first, INT64))


def run_worker(launch, worker):
    """Everything one worker does in a launch: `void(int64* launch record, int64 worker)`."""
    step = pointer_to(launch[layout.STEP_RECORDS] + worker * layout.STEP_WORDS * INT64_BYTES,
                      INT64)
    stuck = pointer_to(launch[layout.STUCK] + worker * layout.STUCK_WORDS * INT64_BYTES, INT64)
    scratch = launch[layout.SCRATCH] + worker * launch[layout.SCRATCH_BYTES]
    begin_launch(launch, worker)
    epoch = np.int64(0)
    for s in range(launch[layout.NUM_SEGMENTS]):
        segment = pointer_to(segment_address(launch, s), INT64)
        stuck[layout.STUCK_SEGMENT] = s
        step[layout.ROW_ADVANCE] = segment[layout.SEGMENT_ADVANCE]
        for index in range(segment[layout.STEPS]):
            epoch += 1
            stuck[layout.STUCK_STEP] = epoch
            step[layout.STEP_INDEX] = index
            step[layout.ROW_BASE] = segment[layout.FIRST_ROW] + index * segment[layout.ROW_STRIDE]
            step[layout.LOGIT_BASE] = (
                segment[layout.FIRST_LOGIT] + index * segment[layout.LOGIT_STRIDE])
            state = State(launch, segment, step, stuck, scratch, worker, epoch,
                          trace_of_step(segment, index))
            if not run_rows(state):
                return
            if not end_step(state, next_segment(launch, np.int64(s), np.int64(index))):
                return
