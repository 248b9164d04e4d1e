"""Proof that a task table is safe under every execution its events allow.

Checked: every wait can be satisfied, no circle of waits, tensors that edges read exist before
they are read, and no race: two tasks that touch overlapping regions of a tensor, one of them
writing, are ordered by a chain of events.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from event_tensor.device_function import Indexed, Operand, Span, Tile
from event_tensor.errors import GraphError, RaceError
from event_tensor.graph import Call, Graph, covers
from event_tensor.reachability import Ancestors, ancestors
from event_tensor.task_table import IntArray, Runtime, TaskTable, instantiate
from event_tensor.tensors import RUNTIME, TensorSpec


def verify(graph: Graph, bindings: Mapping[str, int], runtime: Runtime | None = None) -> TaskTable:
    """Instantiate `graph`, prove it, and return the proved table.

    Raises GraphError, CountError, CycleError or RaceError; each names the task, the event or
    tensor, and the remedy. Data-dependent edges are proved for the sample values in `runtime`.
    """
    verify_structure(graph)
    table = instantiate(graph, bindings, runtime)
    verify_table(table)
    return table


def verify_structure(graph: Graph) -> None:
    """What needs no sizes: data-dependent edges name tensors that some call writes first."""
    written: dict[TensorSpec, int] = {}
    for call in graph.calls:
        for operand, tensor in call.accesses():
            if operand.writes:
                written.setdefault(tensor, call.index)
    for call in graph.calls:
        for edge in (*call.in_edges, *call.out_edges):
            needed = edge.map.tensors_read()
            if edge.event.count_from is not None:
                needed = (*needed, edge.event.count_from)
            for tensor in needed:
                if tensor not in written or written[tensor] > call.index:
                    raise GraphError(
                        f"edge {call.name} – {edge.event.name} depends on {tensor.name!r}, which "
                        f"no call before it writes; add the call that computes it")
        for edge in call.out_edges:
            if edge.is_data_dependent and edge.event.wait_count is not RUNTIME:
                raise GraphError(
                    f"{call.name} chooses at run time which event of {edge.event.name} it "
                    f"notifies, so its counts exist only there; declare wait_count=RUNTIME and "
                    f"count_from")


def verify_table(table: TaskTable) -> Ancestors:
    """Prove one instantiated table; returns the ancestor sets for further questions."""
    _check_waits(table)
    order = ancestors(table)
    _check_runtime_reads(table, order)
    _check_races(table, order)
    return order


def _check_waits(table: TaskTable) -> None:
    silent = table.event_count[table.wait_event] == 0
    if not silent.any():
        return
    empty_producers = {
        edge.event for call in table.graph.calls for edge in call.out_edges
        if table.call_begin[call.index] == table.call_begin[call.index + 1]}
    for position in np.flatnonzero(silent):
        event = int(table.wait_event[position])
        owner = next(e for e, begin in reversed(table.event_begin.items()) if begin <= event)
        if owner not in empty_producers:
            task = int(table.wait_task[position])
            raise GraphError(
                f"task {table.task_name(task)} waits on {table.event_name(event)}, which no task "
                f"notifies; give a producer an out edge to it or drop the wait")


def _check_runtime_reads(table: TaskTable, order: Ancestors) -> None:
    """A map or a count is evaluated when a task notifies: its tensor must be complete by then."""
    graph = table.graph
    writers: dict[TensorSpec, list[int]] = defaultdict(list)
    for call in graph.calls:
        for operand, tensor in call.accesses():
            if operand.writes:
                writers[tensor].append(call.index)
    triggers = defaultdict(set)
    for call in graph.calls:
        for edge in call.in_edges:
            if edge.is_trigger:
                triggers[edge.event] |= set(edge.map.tensors_read())
    for call in graph.calls:
        for edge in call.out_edges:
            needed = set(edge.map.tensors_read()) | triggers[edge.event]
            if edge.event.count_from is not None:
                needed.add(edge.event.count_from)
            for tensor in needed:
                for writer in writers[tensor]:
                    if writer != call.index:
                        _require_order(table, order, writer, call, tensor, edge.event.name)


def _require_order(table: TaskTable, order: Ancestors, writer: int, call: Call,
                   tensor: TensorSpec, event: str) -> None:
    earlier, later = _tasks(table, writer), _tasks(table, call.index)
    ordered = order.before(earlier[None, :], later[:, None])
    if not ordered.all():
        l, e = np.argwhere(~ordered)[0]
        raise RaceError(
            f"task {table.task_name(int(later[l]))} evaluates an edge of {event} from "
            f"{tensor.name!r} before {table.task_name(int(earlier[e]))} must have written it; "
            f"add an event between them")


@dataclass(frozen=True, slots=True)
class _Boxes:
    """The regions that the tasks of one call access through one operand."""

    call: Call
    operand: Operand
    tasks: IntArray
    low: IntArray  # [tasks, rank]
    high: IntArray
    distinct: npt.NDArray[np.bool_] | None  # [rank]: tiles are disjoint there by promise


def _check_races(table: TaskTable, order: Ancestors) -> None:
    history: dict[TensorSpec, list[_Boxes]] = defaultdict(list)
    for call in table.graph.calls:
        if table.call_begin[call.index] == table.call_begin[call.index + 1]:
            continue
        for operand, tensor in call.accesses():
            boxes = _boxes(table, call, operand, tensor)
            if operand.writes:
                _check_own_tiles(table, boxes, tensor)
            for earlier in history[tensor]:
                if operand.writes or earlier.operand.writes:
                    _check_pair(table, order, earlier, boxes, tensor)
            if operand.writes and covers(call, operand, tensor):
                history[tensor] = [b for b in history[tensor] if b.call is call]
            if tensor.role != "weight" or operand.writes:
                history[tensor].append(boxes)


def _tasks(table: TaskTable, call: int) -> IntArray:
    return np.arange(table.call_begin[call], table.call_begin[call + 1])


def _boxes(table: TaskTable, call: Call, operand: Operand, tensor: TensorSpec) -> _Boxes:
    tasks = _tasks(table, call.index)
    tile = table.tile[tasks]
    local = {**table.bindings, **{axis: tile[:, k] for k, axis in enumerate(call.function.axes)}}
    low, high, distinct = [], [], []
    for part, dim in zip(call.region(operand), tensor.shape, strict=True):
        extent = int(dim.evaluate(table.bindings))
        start, stop = np.zeros(len(tasks), np.int64), np.full(len(tasks), extent, np.int64)
        if isinstance(part, Tile):
            size = int(part.size.evaluate(table.bindings))
            start = local[part.axis] * size
            stop = np.minimum(start + size, extent)
        elif isinstance(part, Span):
            start = np.broadcast_to(part.start.evaluate(local), len(tasks))
            stop = np.minimum(start + part.length.evaluate(local), extent)
            if (start < 0).any():
                raise GraphError(f"{call.name}: operand {operand.name!r} starts below 0 of "
                                 f"{tensor.name!r}; correct its region")
        low.append(start)
        high.append(stop)
        distinct.append(isinstance(part, Indexed) and part.distinct)
    shape = (len(tasks), len(tensor.shape))
    return _Boxes(call, operand, tasks, np.array(low).T.reshape(shape),
                  np.array(high).T.reshape(shape), np.array(distinct) if any(distinct) else None)


def _overlap(low_a: IntArray, high_a: IntArray, low_b: IntArray, high_b: IntArray
             ) -> npt.NDArray[np.bool_]:
    """[a, b]: do the boxes share an element?"""
    rank = low_a.shape[1]
    result = np.ones((len(low_a), len(low_b)), bool)
    for d in range(rank):
        result &= (np.maximum(low_a[:, None, d], low_b[None, :, d])
                   < np.minimum(high_a[:, None, d], high_b[None, :, d]))
    return result


def _check_pair(table: TaskTable, order: Ancestors, earlier: _Boxes, later: _Boxes,
                tensor: TensorSpec) -> None:
    """Tasks with equal boxes are compared once: a row read by 100 tiles is one question."""
    box_a, group_a = _unique_boxes(earlier)
    box_b, group_b = _unique_boxes(later)
    rank = earlier.low.shape[1]
    shared = _overlap(box_a[:, :rank], box_a[:, rank:], box_b[:, :rank], box_b[:, rank:])
    for b in range(len(box_b)):
        first = earlier.tasks[shared[group_a, b]]
        second = later.tasks[group_b == b]
        if earlier.call is later.call:  # one task may name a tensor twice
            ordered = first[None, :] == second[:, None]
        else:
            ordered = order.before(first[None, :], second[:, None])
        if not ordered.all():
            l, e = np.argwhere(~ordered)[0]
            _raise_race(table, earlier, later, tensor, int(first[e]), int(second[l]))


def _raise_race(table: TaskTable, earlier: _Boxes, later: _Boxes, tensor: TensorSpec, first: int,
                second: int) -> None:
    verbs = {"read": "reads", "write": "writes", "update": "updates"}
    raise RaceError(
        f"{table.task_name(first)} {verbs[earlier.operand.access]} and "
        f"{table.task_name(second)} {verbs[later.operand.access]} overlapping parts of "
        f"{tensor.name!r}, and no chain of events orders them; leave the edges out to have them "
        f"derived, or add an event")


def _unique_boxes(boxes: _Boxes) -> tuple[IntArray, IntArray]:
    rows = np.concatenate([boxes.low, boxes.high], axis=1)
    unique, group = np.unique(rows, axis=0, return_inverse=True)
    return unique, group.ravel()


def _check_own_tiles(table: TaskTable, boxes: _Boxes, tensor: TensorSpec) -> None:
    """Tiles of one call run at once: what they write must not overlap."""
    low, high = boxes.low, boxes.high
    if boxes.distinct is not None:
        axes = [boxes.call.function.axes.index(part.axis) if part.axis else None
                for part in boxes.operand.region if isinstance(part, Indexed) and part.distinct]
        columns = [table.tile[boxes.tasks, a][:, None] for a in axes if a is not None]
        low = np.concatenate([low[:, ~boxes.distinct], *columns], axis=1)
        high = np.concatenate([high[:, ~boxes.distinct], *(c + 1 for c in columns)], axis=1)
    if len(low) < 2 or _are_disjoint_by_order(low, high):
        return
    shared = _overlap(low, high, low, high)
    np.fill_diagonal(shared, False)
    if shared.any():
        a, b = np.argwhere(shared)[0]
        raise RaceError(
            f"{table.task_name(int(boxes.tasks[a]))} and {table.task_name(int(boxes.tasks[b]))} "
            f"write overlapping parts of {tensor.name!r} and run at the same time; give each tile "
            f"its own part")


def _are_disjoint_by_order(low: IntArray, high: IntArray) -> bool:
    """Quick sufficient test: equal tile starts are distinct and tiles end where the next begins."""
    starts = np.unique(low, axis=0)
    if len(starts) != len(low):
        return False
    for d in range(low.shape[1]):
        edges = np.unique(low[:, d])
        following = np.append(edges[1:], np.iinfo(np.int64).max)
        if (high[:, d] > following[np.searchsorted(edges, low[:, d])]).any():
            return False
    return True
