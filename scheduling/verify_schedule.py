"""Proof that a static schedule executes its task table, given that all workers are resident."""

from __future__ import annotations

import numpy as np

from event_tensor.errors import ScheduleError
from event_tensor.verify import check_counts
from scheduling.clocks import ClockBuilder, execution_order, required_clocks
from scheduling.static_schedule import StaticSchedule


def verify_schedule(schedule: StaticSchedule) -> StaticSchedule:
    """Return the schedule if it is safe.

    Each task is placed once; the workers never block one another; every count equals the
    notifies; and each task starts after all that the proved table makes it wait for. Raises
    ScheduleError or CountError naming the task, the event and the remedy.
    """
    table, source = schedule.table, schedule.source
    if not np.array_equal(table.tile, source.tile) or not np.array_equal(table.call, source.call):
        raise ScheduleError("the schedule's tasks are not those of the proved table; schedule "
                            "that table again")
    check_counts(table)
    clocks = ClockBuilder(schedule)
    wait_indptr, wait_event = table.wait_indptr.tolist(), table.wait_event.tolist()
    notify_indptr, notify_event = table.notify_indptr.tolist(), table.notify_event.tolist()
    for task in execution_order(schedule):
        clock = clocks.current[clocks.worker[task]].copy()
        for event in wait_event[wait_indptr[task]:wait_indptr[task + 1]]:
            np.maximum(clock, clocks.event[event], out=clock)
        clocks.finish(task, clock, notify_event[notify_indptr[task]:notify_indptr[task + 1]])
    required = required_clocks(schedule, clocks.worker, clocks.position)
    behind = (clocks.task[source.wait_task] < required[source.wait_event]).any(axis=1)
    if behind.any():
        position = int(np.argmax(behind))
        raise ScheduleError(
            f"{source.task_name(int(source.wait_task[position]))} may start before "
            f"{source.event_name(int(source.wait_event[position]))} is complete; keep that wait")
    return schedule
