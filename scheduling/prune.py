"""Removal of waits that another wait or the worker's own order already implies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from event_tensor.task_table import TaskTable
from scheduling.clocks import ClockBuilder, execution_order
from scheduling.static_schedule import StaticSchedule


def prune_waits(schedule: StaticSchedule) -> StaticSchedule:
    """The same schedule with only the waits it needs; notifies nobody waits for go as well."""
    table = schedule.table
    clocks = ClockBuilder(schedule)
    wait_indptr, wait_event = table.wait_indptr.tolist(), table.wait_event.tolist()
    notify_indptr, notify_event = table.notify_indptr.tolist(), table.notify_event.tolist()
    kept: dict[int, list[int]] = {}
    for task in execution_order(schedule):
        clock = clocks.current[clocks.worker[task]].copy()
        awaited = wait_event[wait_indptr[task]:wait_indptr[task + 1]]
        # an event that adds most to what the worker knows often covers the others
        if len(awaited) > 1:
            known = {e: int(np.maximum(clocks.event[e], clock).sum()) for e in awaited}
            awaited = sorted(known, key=lambda e: -known[e])
        needed = []
        for event in awaited:
            required = clocks.event[event]
            if (required > clock).any():
                needed.append(event)
                np.maximum(clock, required, out=clock)
        if needed:
            kept[task] = needed
        clocks.finish(task, clock, notify_event[notify_indptr[task]:notify_indptr[task + 1]])
    tasks = sorted(kept)
    pruned = table.with_waits(
        np.repeat(np.array(tasks, np.int64), [len(kept[t]) for t in tasks]),
        np.array([e for t in tasks for e in kept[t]], np.int64))
    return replace(schedule, table=_without_silent_notifies(pruned))


def _without_silent_notifies(table: TaskTable) -> TaskTable:
    awaited = np.zeros(table.num_events, bool)
    awaited[table.wait_event] = True
    keep = awaited[table.notify_event]
    return table.with_notifies(table.notify_task[keep], table.notify_event[keep])
