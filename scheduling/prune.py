"""Removal of waits that another wait or the worker's own order already implies.

In rows, clocks tell which; they do not cover events with queued or data-dependent producers, whose
waits stay. Of a queued task's waits those go that lie behind another one of its events.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from event_tensor.ancestors import ancestors
from event_tensor.conservative import conservative_events
from event_tensor.task_table import TaskTable
from scheduling.clocks import ClockBuilder, execution_order, uncountable_events
from scheduling.schedule import Schedule


def prune_waits(schedule: Schedule) -> Schedule:
    """The same schedule with only the waits it needs; notifies nobody waits for go as well."""
    table = schedule.table
    clocks = ClockBuilder(schedule)
    wait_indptr, wait_event = table.wait_indptr.tolist(), table.wait_event.tolist()
    notify_indptr, notify_event = table.notify_indptr.tolist(), table.notify_event.tolist()
    uncountable = uncountable_events(table, clocks.worker).tolist()
    fewer = _waits_of_queued(schedule)
    kept: dict[int, list[int]] = {}
    for task in execution_order(schedule):
        clock = clocks.start(task)
        awaited = wait_event[wait_indptr[task]:wait_indptr[task + 1]]
        if clocks.worker[task] < 0:
            kept[task] = fewer.get(task, awaited)
            for event in kept[task]:
                np.maximum(clock, clocks.event[event], out=clock)
            clocks.finish(task, clock, notify_event[notify_indptr[task]:notify_indptr[task + 1]])
            continue
        # the event that advances the clock most often covers the others
        if len(awaited) > 1:
            known = {e: int(np.maximum(clocks.event[e], clock).sum()) for e in awaited}
            awaited = sorted(known, key=lambda e: -known[e])
        needed = []
        for event in awaited:
            required = clocks.event[event]
            if uncountable[event] or (required > clock).any():
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


def _waits_of_queued(schedule: Schedule) -> dict[int, list[int]]:
    """Task → waits it needs, for queued tasks of data-dependent calls: derivation, which does not
    see behind data-dependent edges, leaves them more than that."""
    table = schedule.table
    is_conservative = conservative_events(table)
    calls = {int(table.call[t]) for task, event in ((table.wait_task, table.wait_event),
                                                    (table.notify_task, table.notify_event))
             for t in task[is_conservative[event]]}
    tasks = schedule.queued[np.isin(table.call[schedule.queued], sorted(calls))]
    tasks = tasks[np.diff(table.wait_indptr)[tasks] > 1]
    if not len(tasks):
        return {}
    order = ancestors(table)
    producer_indptr, producer = table.producers()
    known: dict[tuple[int, ...], list[int]] = {}
    result: dict[int, list[int]] = {}
    for task in tasks.tolist():
        awaited = table.waits_of(task).tolist()
        if tuple(awaited) not in known:
            needed = awaited
            for event in awaited:
                others = [e for e in needed if e != event]
                producers = producer[producer_indptr[event]:producer_indptr[event + 1]]
                if others and not is_conservative[event] and order.all_behind(
                        producers, np.array(others)):
                    needed = others
            known[tuple(awaited)] = needed
        result[task] = known[tuple(awaited)]
    return result


def _without_silent_notifies(table: TaskTable) -> TaskTable:
    awaited = np.zeros(table.num_events, bool)
    awaited[table.wait_event] = True
    keep = awaited[table.notify_event]
    return table.with_notifies(table.notify_task[keep], table.notify_event[keep])
