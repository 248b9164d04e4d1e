"""One event in the place of several that the same tasks wait for: each wait costs a look at memory
that others write."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from event_tensor.task_table import IntArray, TaskTable
from scheduling.policies import dispatched_calls
from scheduling.schedule import Schedule


def merge_events(schedule: Schedule) -> Schedule:
    """The same schedule in which no two events have the same waiting tasks: the first of such
    events counts the notifies of all. Events of data-dependent dispatch stay as they are."""
    table = schedule.table
    if not len(table.wait_event):
        return schedule
    first = _first_of_equals(table)
    others: dict[int, tuple[int, ...]] = {}
    for event in np.flatnonzero(first != np.arange(len(first))).tolist():
        others[int(first[event])] = (*others.get(int(first[event]), ()), event)
    merged = replace(table, merged=others).with_notifies(
        *_unique_pairs(table.notify_task, first[table.notify_event])).with_waits(
        *_unique_pairs(table.wait_task, first[table.wait_event]))
    return replace(schedule, table=merged)


def _first_of_equals(table: TaskTable) -> IntArray:
    """[events]: the first event with the same waiting tasks, itself where there is none before."""
    first = np.arange(table.num_events)
    dispatched = _dispatched_events(table)
    by_event = np.lexsort((table.wait_task, table.wait_event))
    events, begin = np.unique(table.wait_event[by_event], return_index=True)
    known: dict[bytes, int] = {}
    for event, tasks in zip(events.tolist(), np.split(table.wait_task[by_event], begin[1:]),
                            strict=True):
        if not dispatched[event]:
            first[event] = known.setdefault(tasks.tobytes(), event)
    return first


def _dispatched_events(table: TaskTable) -> npt.NDArray[np.bool_]:
    """[events]: those of tasks that may not run, or find in a tensor what they wait for."""
    calls = sorted(dispatched_calls(table.graph.original))
    result = np.zeros(table.num_events, bool)
    for task, event in ((table.wait_task, table.wait_event),
                        (table.notify_task, table.notify_event)):
        result[event[np.isin(table.call[task], calls)]] = True
    return result


def _unique_pairs(task: IntArray, event: IntArray) -> tuple[IntArray, IntArray]:
    """Sorted by task; what the same task does with one event, once and where it came first."""
    _, places = np.unique(task * (event.max(initial=0) + 1) + event, return_index=True)
    places = places[np.lexsort((places, task[places]))]
    return task[places], event[places]
