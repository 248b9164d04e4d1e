"""The waves of a task table: the tasks of a wave can run when all earlier waves have run."""

from __future__ import annotations

import numpy as np

from event_tensor.errors import CycleError
from event_tensor.task_table import IntArray, TaskTable


def gather_ranges(indptr: IntArray, rows: IntArray) -> tuple[IntArray, IntArray]:
    """Positions of all entries of the given CSR rows, and each row's length.

    >>> gather_ranges(np.array([0, 2, 2, 5]), np.array([2, 0]))
    (array([2, 3, 4, 0, 1]), array([3, 2]))
    """
    starts = indptr[rows]
    lengths = indptr[rows + 1] - starts
    offsets = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
    return np.arange(len(offsets)) + offsets, lengths


def waves(table: TaskTable) -> list[IntArray]:
    """Tasks in groups: each group can run once the earlier groups have.

    Raises CycleError naming tasks that wait for one another in a circle, or for an event whose
    count is never reached.
    """
    consumer_indptr, consumer = table.consumers()
    remaining = table.event_count.copy()
    satisfied = remaining == 0
    pending = np.bincount(table.wait_task[~satisfied[table.wait_event]],
                          minlength=table.num_tasks)
    ready = np.flatnonzero(pending == 0)
    result: list[IntArray] = []
    done = 0
    while len(ready):
        result.append(ready)
        done += len(ready)
        positions, _ = gather_ranges(table.notify_indptr, ready)
        events, counts = np.unique(table.notify_event[positions], return_counts=True)
        remaining[events] -= counts
        fired = events[remaining[events] == 0]
        positions, _ = gather_ranges(consumer_indptr, fired)
        tasks, counts = np.unique(consumer[positions], return_counts=True)
        pending[tasks] -= counts
        ready = tasks[pending[tasks] == 0]
    if done < table.num_tasks:
        stuck = np.setdiff1d(np.arange(table.num_tasks), 
                             np.concatenate([*result, np.zeros(0, int)]))
        raise CycleError(_describe_stuck(table, stuck, remaining))
    return result


def _describe_stuck(table: TaskTable, stuck: IntArray, remaining: IntArray) -> str:
    """Names a circle of tasks or, where the stuck tasks form none, a count out of reach."""
    import networkx as nx  # the import is slow, and only a broken graph needs it

    stuck_set = set(stuck.tolist())
    producer_indptr, producer = table.producers()
    graph = nx.DiGraph()
    for task in stuck_set:
        for event in table.waits_of(task):
            before = producer[producer_indptr[event]:producer_indptr[event + 1]]
            graph.add_edges_from((int(p), task) for p in before if int(p) in stuck_set)
    try:
        circle = [task for task, _ in nx.find_cycle(graph)]
    except nx.NetworkXNoCycle:
        task = int(stuck[0])
        event = int(next(e for e in table.waits_of(task) if remaining[e] != 0))
        count = int(table.event_count[event])
        return (f"task {table.task_name(task)} waits on {table.event_name(event)}, which counts to "
                f"{count} and is notified {count - int(remaining[event])} times; correct its wait "
                f"count or its edges")
    names = " waits for ".join(table.task_name(task) for task in [*reversed(circle), circle[-1]])
    return f"tasks wait in a circle: {names}; remove one of the edges between them"
