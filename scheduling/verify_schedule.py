"""Proof that a schedule executes its task table, given that all workers are resident."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from event_tensor.conservative import conservative_events
from event_tensor.errors import ScheduleError
from event_tensor.reachability import ancestors
from event_tensor.task_table import IntArray, TaskTable
from event_tensor.verify import check_counts
from scheduling.clocks import (
    ClockBuilder,
    execution_order,
    required_clocks,
    uncountable_events,
)
from scheduling.static_schedule import StaticSchedule


def verify_schedule(schedule: StaticSchedule) -> StaticSchedule:
    """Return the schedule if it is safe.

    Each task is placed once, in a row or in the queue, which holds all queued tasks of a step;
    the workers never block one another; every count equals the notifies; and each task starts
    after all that the proved table makes it wait for. Raises ScheduleError or CountError naming
    the task, the event and the remedy.
    """
    table, source = schedule.table, schedule.source
    if not np.array_equal(table.tile, source.tile) or not np.array_equal(table.call, source.call):
        raise ScheduleError("the schedule's tasks are not those of the proved table; schedule "
                            "that table again")
    check_counts(table)
    _check_capacity(schedule)
    clocks = ClockBuilder(schedule)
    wait_indptr, wait_event = table.wait_indptr.tolist(), table.wait_event.tolist()
    notify_indptr, notify_event = table.notify_indptr.tolist(), table.notify_event.tolist()
    for task in execution_order(schedule):
        clock = clocks.start(task)
        for event in wait_event[wait_indptr[task]:wait_indptr[task + 1]]:
            np.maximum(clock, clocks.event[event], out=clock)
        clocks.finish(task, clock, notify_event[notify_indptr[task]:notify_indptr[task + 1]])
    required = required_clocks(schedule, clocks.worker, clocks.position)
    behind = (clocks.task[source.wait_task] < required[source.wait_event]).any(axis=1)
    kept = _pairs_in(source.wait_task, source.wait_event, table.wait_task, table.wait_event)
    in_row = clocks.worker[source.wait_task] >= 0
    uncountable = uncountable_events(source, clocks.worker)[source.wait_event]
    lost = np.where(in_row & ~uncountable, behind, ~kept)
    _refuse_lost_wait(source, lost & (in_row | conservative_events(source)[source.wait_event]))
    _refuse_lost_wait(source, _not_behind(schedule, np.flatnonzero(lost & ~in_row)))
    _check_data_dependent_notifies(schedule)
    return schedule


def _check_capacity(schedule: StaticSchedule) -> None:
    queued, capacity = len(schedule.queued), schedule.queue_capacity
    if capacity < queued or capacity & (capacity - 1):
        raise ScheduleError(f"{queued} tasks of a step are queued and the queue has {capacity} "
                            f"slots; give it a power of two that holds them all")


def _refuse_lost_wait(source: TaskTable, lost: npt.NDArray[np.bool_]) -> None:
    if lost.any():
        position = int(np.argmax(lost))
        raise ScheduleError(
            f"{source.task_name(int(source.wait_task[position]))} may start before "
            f"{source.event_name(int(source.wait_event[position]))} is complete; keep that wait")


def _not_behind(schedule: StaticSchedule, positions: IntArray) -> npt.NDArray[np.bool_]:
    """[waits of the source]: which of these waits no chain of the schedule's events replaces."""
    source = schedule.source
    result = np.zeros(len(source.wait_event), bool)
    if len(positions):
        order = ancestors(schedule.table)
        indptr, producer = source.producers()
        for position in positions.tolist():
            event = source.wait_event[position]
            earlier = producer[indptr[event]:indptr[event + 1]]
            result[position] = not order.before(earlier, source.wait_task[position]).all()
    return result


def _check_data_dependent_notifies(schedule: StaticSchedule) -> None:
    """What a task notifies through a tensor is not in the table: the stand-in must be there."""
    table, source = schedule.table, schedule.source
    chosen = conservative_events(source)[source.notify_event]
    task, event = source.notify_task[chosen], source.notify_event[chosen]
    lost = ~_pairs_in(task, event, table.notify_task, table.notify_event)
    if lost.any():
        k = int(np.argmax(lost))
        raise ScheduleError(f"{source.task_name(int(task[k]))} does not notify "
                            f"{source.event_name(int(event[k]))}; keep that notify")


def _pairs_in(task: IntArray, event: IntArray, tasks: IntArray, events: IntArray
              ) -> npt.NDArray[np.bool_]:
    """Element-wise: is (task, event) one of the pairs (tasks, events)?"""
    width = 1 + max(event.max(initial=0), events.max(initial=0))
    return np.isin(task * width + event, tasks * width + events)
