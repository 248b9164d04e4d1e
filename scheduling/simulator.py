"""Discrete-event estimate of a schedule under the cost model: its length and its waits."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scheduling.clocks import execution_order, positions
from scheduling.early import early_events
from scheduling.schedule import Schedule
from scheduling.target import Target, task_costs_us


@dataclass(frozen=True, slots=True)
class Estimate:
    """Times of one step. A worker's `wait_us` is what it stands idle before its own tasks; after
    its last task it is done."""

    makespan_us: float
    busy_us: tuple[float, ...]  # [workers]
    wait_us: tuple[float, ...]  # [workers]
    task_worker: tuple[int, ...]  # [tasks]
    task_begin_us: tuple[float, ...]  # [tasks]
    task_end_us: tuple[float, ...]  # [tasks]

    @property
    def utilisation(self) -> float:
        """Busy share of all workers' time, from 0 to 1."""
        whole = self.makespan_us * len(self.busy_us)
        return sum(self.busy_us) / whole if whole else 1.0


@dataclass(slots=True)
class _Arrival:
    """The latest notify of an event, and the latest from any other worker than that one's."""

    end_us: float = 0.0
    worker: int = -1
    other_end_us: float = 0.0
    has_other: bool = False

    def notify(self, end_us: float, worker: int) -> None:
        if worker == self.worker:
            self.end_us = max(self.end_us, end_us)
            return
        if self.worker >= 0:
            self.other_end_us = max(min(end_us, self.end_us), self.other_end_us)
            self.has_other = True
        if end_us >= self.end_us:
            self.end_us, self.worker = end_us, worker

    def seen_us(self, worker: int, dependency_us: float) -> float:
        """The time from which `worker` sees that the event has fired."""
        if worker != self.worker:
            return self.end_us + dependency_us if self.worker >= 0 else 0.0
        return max(self.end_us, self.other_end_us + dependency_us if self.has_other else 0.0)


def estimate_makespan(schedule: Schedule, target: Target) -> Estimate:
    """Run the schedule under the cost model of `target`.

    A task starts when its worker is free and its events have fired; a notify takes
    `target.dependency_us` to reach another worker and nothing to reach its own. A queued task is
    popped, first pushed first, by the worker that can start it earliest, for `target.pop_us`; to
    count it as dispatched, where that pushes others early, takes as long again.
    Raises ScheduleError for a schedule whose workers would block.
    """
    if len(schedule.queued):
        return _QueueEstimate(schedule, target).run()
    table = schedule.table
    costs = task_costs_us(table, target).tolist()
    worker_of = positions(schedule)[0].tolist()
    wait_indptr, wait_event = table.wait_indptr.tolist(), table.wait_event.tolist()
    notify_indptr, notify_event = table.notify_indptr.tolist(), table.notify_event.tolist()
    arrivals = [_Arrival() for _ in range(table.num_events)]
    free = [0.0] * schedule.num_workers
    busy = [0.0] * schedule.num_workers
    wait = [0.0] * schedule.num_workers
    begin = [0.0] * table.num_tasks
    end = [0.0] * table.num_tasks
    for task in execution_order(schedule):
        worker = worker_of[task]
        start = free[worker]
        for event in wait_event[wait_indptr[task]:wait_indptr[task + 1]]:
            start = max(start, arrivals[event].seen_us(worker, target.dependency_us))
        wait[worker] += start - free[worker]
        busy[worker] += costs[task]
        free[worker] = start + costs[task]
        begin[task], end[task] = start, free[worker]
        for event in notify_event[notify_indptr[task]:notify_indptr[task + 1]]:
            arrivals[event].notify(free[worker], worker)
    return Estimate(max(free, default=0.0), tuple(busy), tuple(wait), tuple(worker_of),
                    tuple(begin), tuple(end))


class _QueueEstimate:
    """Always the action that can start first comes next: a worker's next row or a pop."""

    def __init__(self, schedule: Schedule, target: Target) -> None:
        execution_order(schedule)  # raises where workers would block
        self.table, self.target = schedule.table, target
        self.costs = task_costs_us(self.table, target).tolist()
        self.arrivals = [_Arrival() for _ in range(self.table.num_events)]
        self.missing = self.table.event_count.tolist()
        self.consumers = self.table.consumers()
        self.rows = [order.tolist()[::-1] for order in schedule.orders]
        self.has_rows = any(self.rows)
        self.is_queued = np.zeros(self.table.num_tasks, bool)
        self.is_queued[schedule.queued] = True
        self.pending = np.bincount(
            self.table.wait_task[self.table.event_count[self.table.wait_event] > 0],
            minlength=self.table.num_tasks).tolist()
        self.queue = [(0.0, task) for task in schedule.queued.tolist() if not self.pending[task]]
        self.pushed = [0.0] * self.table.num_tasks  # of those that wait for anything
        is_early = (early_events(schedule) if schedule.early
                    else np.zeros(self.table.num_events, bool))
        self.is_early = is_early.tolist()
        self.dispatched = [0.0] * self.table.num_events  # the last of its producers
        pop_us: npt.NDArray[np.float64] = np.full(self.table.num_tasks, target.pop_us)
        pop_us[self.table.notify_task[is_early[self.table.notify_event]]] *= 2
        self.pop_us: list[float] = pop_us.tolist()
        self.free = [0.0] * schedule.num_workers
        self.busy = [0.0] * schedule.num_workers
        self.wait = [0.0] * schedule.num_workers
        self.worker = [-1] * self.table.num_tasks
        self.begin = [0.0] * self.table.num_tasks
        self.end = [0.0] * self.table.num_tasks

    def run(self) -> Estimate:
        first_free = [(0.0, worker) for worker in range(len(self.free))]
        for _ in range(self.table.num_tasks):
            # without rows, only the worker that is free first comes into question
            workers = (range(len(self.free)) if self.has_rows
                       else (heapq.heappop(first_free)[1],))
            start, worker, task = min(action for w in workers for action in self._actions(w))
            popped = 0.0
            if self.is_queued[task]:
                popped = self._popped(worker, *heapq.heappop(self.queue))
            else:
                self.rows[worker].pop()
            self.wait[worker] += start - self.free[worker]
            self.busy[worker] += self.costs[task]
            self.free[worker] = start + self.costs[task]
            heapq.heappush(first_free, (self.free[worker], worker))
            self.worker[task], self.begin[task], self.end[task] = worker, start, self.free[worker]
            self._notify(task, worker, popped)
        return Estimate(max(self.free), tuple(self.busy), tuple(self.wait), tuple(self.worker),
                        tuple(self.begin), tuple(self.end))

    def _actions(self, worker: int) -> Iterator[tuple[float, int, int]]:
        """(start, worker, task) of the row and of the pop that the worker could do next."""
        if self.rows[worker] and not self.pending[self.rows[worker][-1]]:
            yield self._start(worker, self.rows[worker][-1]), worker, self.rows[worker][-1]
        if self.queue:
            pushed, task = self.queue[0]
            yield max(self._popped(worker, pushed, task), self._start(worker, task)), worker, task

    def _popped(self, worker: int, pushed: float, task: int) -> float:
        """When the worker has popped the task and, if that pushes others early, told of it."""
        return max(self.free[worker], pushed) + self.pop_us[task]

    def _start(self, worker: int, task: int) -> float:
        start = self.free[worker]
        for event in self.table.waits_of(task).tolist():
            start = max(start, self.arrivals[event].seen_us(worker, self.target.dependency_us))
        return start

    def _notify(self, task: int, worker: int, popped: float) -> None:
        indptr, consumer = self.consumers
        for event in self.table.notifies_of(task).tolist():
            self.arrivals[event].notify(self.free[worker], worker)
            self.dispatched[event] = max(self.dispatched[event], popped)
            self.missing[event] -= 1
            if self.missing[event]:
                continue
            fired = (self.dispatched[event] if self.is_early[event]
                     else self.arrivals[event].end_us)
            for follower in consumer[indptr[event]:indptr[event + 1]].tolist():
                self.pending[follower] -= 1
                self.pushed[follower] = max(self.pushed[follower], fired)
                if not self.pending[follower] and self.is_queued[follower]:
                    heapq.heappush(self.queue, (self.pushed[follower], follower))
