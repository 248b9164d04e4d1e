"""Which tasks are ordered before which: waves of a task table and its ancestor sets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from event_tensor.conservative import conservative_events
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
    import networkx as nx  # only a broken graph needs it, and importing it takes a while

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


@dataclass(frozen=True, slots=True, eq=False)
class Ancestors:
    """Bit p of row t: task p is finished before task t starts, in every execution."""

    bits: npt.NDArray[np.uint8]  # [tasks, ceil(tasks / 8)], little bit order
    event_bits: npt.NDArray[np.uint8]  # [events, ceil(tasks / 8)]: finished once it has fired

    def before(self, earlier: IntArray, later: IntArray) -> npt.NDArray[np.bool_]:
        """Element-wise (broadcasting): is `earlier` ordered before `later`?"""
        bits = self.bits[later, earlier >> 3] >> (earlier & 7).astype(np.uint8)
        return np.asarray(bits & 1, bool)

    def all_behind(self, tasks: IntArray, events: IntArray) -> bool:
        """Whether all the tasks are finished once the events have fired."""
        bits = np.bitwise_or.reduce(self.event_bits[events], axis=0)
        return bool((bits[tasks >> 3] >> (tasks & 7).astype(np.uint8) & 1).all())


def ancestors(table: TaskTable) -> Ancestors:
    """The ancestor set of every task, wave by wave.

    Behind an event that stands for a whole event tensor only what all its producers have behind
    them is certain: a task that waits for one of the tensor's events meets at least one producer.
    """
    width = (table.num_tasks + 7) // 8
    bits = np.zeros((table.num_tasks, width), np.uint8)
    event_bits = np.zeros((table.num_events, width), np.uint8)
    producer_indptr, producer = table.producers()
    ready_event = np.zeros(table.num_events, bool)
    is_conservative = conservative_events(table)
    for wave in waves(table):
        positions, lengths = gather_ranges(table.wait_indptr, wave)
        events = table.wait_event[positions]
        fresh = np.unique(events[~ready_event[events]])
        certain = fresh[~is_conservative[fresh]]
        _accumulate_events(certain, producer_indptr, producer, bits, event_bits)
        for event in fresh[is_conservative[fresh]]:
            tasks = producer[producer_indptr[event]:producer_indptr[event + 1]]
            if len(tasks):
                behind = bits[tasks]
                own = np.left_shift(1, tasks & 7).astype(np.uint8)
                behind[np.arange(len(tasks)), tasks >> 3] |= own
                event_bits[event] = np.bitwise_and.reduce(behind, axis=0)
        ready_event[fresh] = True
        _or_rows(bits, wave, lengths, event_bits, events)
    return Ancestors(bits, event_bits)


def _accumulate_events(events: IntArray, indptr: IntArray, producer: IntArray,
                       bits: npt.NDArray[np.uint8], event_bits: npt.NDArray[np.uint8]) -> None:
    """An event's row: its producers and all their ancestors."""
    positions, lengths = gather_ranges(indptr, events)
    tasks = producer[positions]
    _or_rows(event_bits, events, lengths, bits, tasks)
    owners = np.repeat(events, lengths)
    np.bitwise_or.at(event_bits, (owners, tasks >> 3),
                     np.left_shift(1, tasks & 7).astype(np.uint8))


def _or_rows(target: npt.NDArray[np.uint8], rows: IntArray, lengths: IntArray,
             source: npt.NDArray[np.uint8], source_rows: IntArray) -> None:
    """target[rows[k]] |= OR of the next lengths[k] rows of source."""
    present = lengths > 0
    if present.any():
        starts = (np.cumsum(lengths) - lengths)[present]
        if (lengths[present] == 1).all():
            target[rows[present]] |= source[source_rows]
        else:
            target[rows[present]] |= np.bitwise_or.reduceat(source[source_rows], starts, axis=0)
