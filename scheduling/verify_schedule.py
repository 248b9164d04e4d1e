"""Proof that a schedule executes its task table, given that all workers are resident."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from event_tensor.ancestors import ancestors
from event_tensor.conservative import conservative_events
from event_tensor.errors import ScheduleError
from event_tensor.task_table import IntArray, TaskTable
from event_tensor.verify import check_counts
from event_tensor.waves import gather_ranges
from scheduling.clocks import (
    ClockBuilder,
    execution_order,
    required_clocks,
    uncountable_events,
)
from scheduling.schedule import Schedule


def verify_schedule(schedule: Schedule) -> Schedule:
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
    kept = _kept_waits(schedule)
    in_row = clocks.worker[source.wait_task] >= 0
    uncountable = uncountable_events(source, clocks.worker)[source.wait_event]
    counted = in_row & ~uncountable
    _refuse_lost_wait(source, counted & behind)
    lost = ~counted & ~kept
    _refuse_lost_wait(source, lost & conservative_events(source)[source.wait_event])
    _refuse_lost_wait(source, _not_behind(schedule, np.flatnonzero(lost)))
    return schedule


def _check_capacity(schedule: Schedule) -> None:
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


def _not_behind(schedule: Schedule, positions: IntArray) -> npt.NDArray[np.bool_]:
    """[waits of the source]: which of these waits no chain of events and rows replaces."""
    source = schedule.source
    result = np.zeros(len(source.wait_event), bool)
    if len(positions):
        order = ancestors(_with_rows_in_order(schedule))
        indptr, producer = source.producers()
        entries, lengths = gather_ranges(indptr, source.wait_event[positions])
        later = np.repeat(source.wait_task[positions], lengths)
        behind = order.before(producer[entries], later)
        result[np.repeat(positions, lengths)[~behind]] = True
    return result


def _with_rows_in_order(schedule: Schedule) -> TaskTable:
    """The schedule's table with an event between a row and the next of the same worker."""
    table = schedule.table
    before = np.concatenate([order[:-1] for order in schedule.orders])
    after = np.concatenate([order[1:] for order in schedule.orders])
    event = table.num_events + np.arange(len(before))
    wait_task = np.concatenate([table.wait_task, after])
    notify_task = np.concatenate([table.notify_task, before])
    by_wait = np.argsort(wait_task, kind="stable")
    by_notify = np.argsort(notify_task, kind="stable")
    count = np.concatenate([table.event_count, np.ones(len(before), np.int64)])
    linked = replace(table, event_count=count).with_waits(
        wait_task[by_wait], np.concatenate([table.wait_event, event])[by_wait])
    return linked.with_notifies(
        notify_task[by_notify], np.concatenate([table.notify_event, event])[by_notify])


def _kept_waits(schedule: Schedule) -> npt.NDArray[np.bool_]:
    """[waits of the source]: whether the schedule has the wait and all notifies it counts."""
    table, source = schedule.table, schedule.source
    notified = _pairs_in(source.notify_task, source.notify_event, table.notify_task,
                         table.notify_event)
    is_whole = np.ones(source.num_events, bool)
    is_whole[source.notify_event[~notified]] = False
    return is_whole[source.wait_event] & _pairs_in(
        source.wait_task, source.wait_event, table.wait_task, table.wait_event)


def _pairs_in(task: IntArray, event: IntArray, tasks: IntArray, events: IntArray
              ) -> npt.NDArray[np.bool_]:
    """Element-wise: is (task, event) one of the pairs (tasks, events)?"""
    width = 1 + max(event.max(initial=0), events.max(initial=0))
    return np.isin(task * width + event, tasks * width + events)
