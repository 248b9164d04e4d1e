"""Vector clocks of a schedule: which rows have certainly finished when a task starts.

Queued tasks have no place in a worker's order, so clocks count rows only; a queued task passes on
what its own events told it. An event that stands for a whole event tensor tells nothing.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from event_tensor.conservative import conservative_events
from event_tensor.errors import ScheduleError
from event_tensor.task_table import IntArray, TaskTable
from scheduling.schedule import Schedule

Clocks = npt.NDArray[np.int32]


def positions(schedule: Schedule) -> tuple[IntArray, IntArray]:
    """(worker, position) of every task, -1 for queued ones. Raises ScheduleError unless each task
    is placed once."""
    table = schedule.table
    worker = np.full(table.num_tasks, -1, np.int64)
    position = np.full(table.num_tasks, -1, np.int64)
    for w, order in enumerate(schedule.orders):
        if len(order) and (order.min() < 0 or order.max() >= table.num_tasks):
            raise ScheduleError(f"worker {w} is given a task outside 0..{table.num_tasks - 1}")
        again = order[worker[order] >= 0]
        repeated = again if len(again) else _repeated(order)
        if len(repeated):
            raise ScheduleError(f"task {table.task_name(int(repeated[0]))} is scheduled twice; "
                                f"place every task once")
        worker[order] = w
        position[order] = np.arange(len(order))
    placed = worker >= 0
    again = schedule.queued[placed[schedule.queued]]
    repeated = again if len(again) else _repeated(schedule.queued)
    if len(repeated):
        raise ScheduleError(f"task {table.task_name(int(repeated[0]))} is scheduled twice; "
                            f"place every task once")
    placed[schedule.queued] = True
    lost = np.flatnonzero(~placed)
    if len(lost):
        raise ScheduleError(f"task {table.task_name(int(lost[0]))} is on no worker's order and not "
                            f"queued; place every task once")
    return worker, position


def _repeated(order: IntArray) -> IntArray:
    unique, counts = np.unique(order, return_counts=True)
    return unique[counts > 1]


def execution_order(schedule: Schedule) -> list[int]:
    """An order in which the workers can run everything; ScheduleError if they would block.

    A worker that waits serves the queue, so a queued task runs once its events have fired.
    """
    table = schedule.table
    wait_indptr, wait_event = table.wait_indptr.tolist(), table.wait_event.tolist()
    notify_indptr, notify_event = table.notify_indptr.tolist(), table.notify_event.tolist()
    missing = table.event_count.tolist()
    orders = [order.tolist() for order in schedule.orders]
    orders += [[task] for task in schedule.queued.tolist()]
    heads = [0] * len(orders)
    blocked: dict[int, list[int]] = {}
    runnable = deque(range(len(orders)))
    sequence: list[int] = []
    while runnable:
        w = runnable.popleft()
        order = orders[w]
        while heads[w] < len(order):
            task = order[heads[w]]
            awaited = next((e for e in wait_event[wait_indptr[task]:wait_indptr[task + 1]]
                            if missing[e] > 0), None)
            if awaited is not None:
                blocked.setdefault(awaited, []).append(w)
                break
            sequence.append(task)
            heads[w] += 1
            for event in notify_event[notify_indptr[task]:notify_indptr[task + 1]]:
                missing[event] -= 1
                if missing[event] == 0:
                    runnable.extend(blocked.pop(event, ()))
    if len(sequence) < table.num_tasks:
        w = next(w for w in range(len(orders)) if heads[w] < len(orders[w]))
        task = orders[w][heads[w]]
        event = next(e for e in wait_event[wait_indptr[task]:wait_indptr[task + 1]]
                     if missing[e] > 0)
        who = f"worker {w}" if w < schedule.num_workers else "a queued task"
        raise ScheduleError(
            f"{who} would wait forever: {table.task_name(task)} waits on "
            f"{table.event_name(event)} with {missing[event]} notifies still to come from tasks "
            f"placed behind waiting ones; reorder the workers' tasks")
    return sequence


class ClockBuilder:
    """Clocks of tasks and events, filled in execution order.

    clock[t, w] = number of worker w's tasks that have finished before task t starts.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.table = schedule.table
        self.worker, self.position = positions(schedule)
        self.task: Clocks = np.zeros((self.table.num_tasks, schedule.num_workers), np.int32)
        self.event: Clocks = np.zeros((self.table.num_events, schedule.num_workers), np.int32)
        self.current: Clocks = np.zeros((schedule.num_workers, schedule.num_workers), np.int32)
        self._tells = (~conservative_events(self.table)).tolist()

    def start(self, task: int) -> Clocks:
        """The clock of the task's worker before it waits; 0 for a queued task, popped by any."""
        worker = self.worker[task]
        return self.current[worker].copy() if worker >= 0 else np.zeros_like(self.current[0])

    def finish(self, task: int, clock: Clocks, events: list[int]) -> None:
        """Record that `task`, started with `clock`, notifies `events`."""
        self.task[task] = clock
        worker = self.worker[task]
        after = clock
        if worker >= 0:
            after = self.current[worker]
            after[:] = clock
            after[worker] = self.position[task] + 1
        for event in events:
            if self._tells[event]:
                np.maximum(self.event[event], after, out=self.event[event])


def required_clocks(schedule: Schedule, worker: IntArray, position: IntArray) -> Clocks:
    """[events of the source table, workers]: what must have finished before a waiting task."""
    source = schedule.source
    required = np.zeros((source.num_events, schedule.num_workers), np.int32)
    in_rows = worker[source.notify_task] >= 0
    task, event = source.notify_task[in_rows], source.notify_event[in_rows]
    np.maximum.at(required, (event, worker[task]), (position[task] + 1).astype(np.int32))
    return required


def uncountable_events(table: TaskTable, worker: IntArray) -> npt.NDArray[np.bool_]:
    """[events]: those that clocks do not cover: with queued producers, or standing for others."""
    result = conservative_events(table)
    result[table.notify_event[worker[table.notify_task] < 0]] = True
    return result
