"""Instantiation: a graph and its bindings → concrete tasks, waits, notifies and counts.

This is all that happens for a new shape, so it is vectorised over the tiles of each call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from event_tensor.edges import Edge, IndexRange
from event_tensor.errors import CountError, GraphError
from event_tensor.graph import Call, Graph
from event_tensor.symbols import Expr, Symbol
from event_tensor.task_table import MAX_TILE_RANK, IntArray, Runtime, TaskTable, indptr
from event_tensor.tensors import RUNTIME, EventTensor, TensorRead


def instantiate(graph: Graph, bindings: Mapping[str, int], runtime: Runtime | None = None
                ) -> TaskTable:
    """The tasks of `graph` for these sizes.

    `runtime` gives sample values (by tensor name) for data-dependent edges; tasks that no
    trigger releases are then left out, and so are those that wait for one of them. Raises
    GraphError for an unbound symbol, a map out of range or a data-dependent edge without values,
    CountError for a count that does not match.
    """
    for symbol in {node for call in graph.calls for expr in call.tile_num for node in expr.walk()
                   if isinstance(node, Symbol)}:
        if bindings.get(symbol.name, symbol.at_least) < symbol.at_least:
            raise GraphError(f"symbol {symbol.name!r} is bound to {bindings[symbol.name]}; it must "
                             f"be at least {symbol.at_least}")
    return _Instantiation(graph, bindings, runtime or {}).run()


def with_costs_at(table: TaskTable, bindings: Mapping[str, int]) -> TaskTable:
    """The same tasks with the costs of other sizes that give the same tiles."""
    other = instantiate(table.graph, bindings, table.runtime)
    return replace(table, bindings=other.bindings, bytes=other.bytes, flops=other.flops)


class _Instantiation:
    def __init__(self, graph: Graph, bindings: Mapping[str, int], runtime: Runtime) -> None:
        self.graph = graph
        self.values: dict[str, Any] = {**bindings, **runtime}
        self.bindings = dict(bindings)
        self.runtime = runtime
        self.event_begin: dict[EventTensor, int] = {}
        self.event_shape: dict[EventTensor, tuple[int, ...]] = {}
        self.num_events = 0
        self.left_out: list[IntArray] = []  # events that left-out tasks notify
        for event in graph.events():
            shape = tuple(int(d.evaluate(self.values)) for d in event.shape)
            self.event_begin[event], self.event_shape[event] = self.num_events, shape
            self.num_events += int(np.prod(shape, dtype=np.int64))

    def run(self) -> TaskTable:
        begin = [0]
        tiles, waits, sizes = [], [], []
        notifies: list[tuple[IntArray, IntArray]] = []
        for call in self.graph.calls:
            first = begin[-1]
            coordinates = self._released(call, notifies)
            count = coordinates.shape[1]
            begin.append(first + count)
            tile = np.zeros((count, MAX_TILE_RANK), np.int64)
            tile[:, :len(coordinates)] = coordinates.T
            tiles.append(tile)
            local = self._local(call, coordinates)
            waits.append(self._edges(call, call.in_edges, coordinates, local, first))
            notifies.append(self._edges(call, call.out_edges, coordinates, local, first))
            cost = call.function.cost
            sizes.append(np.stack([_per_task(cost.bytes, local, count),
                                   _per_task(cost.flops, local, count)]))
        num_tasks = begin[-1]
        wait_task, wait_event = _concatenate(waits)
        notify_task, notify_event = _concatenate(notifies)
        cost_columns = np.concatenate(sizes, axis=1) if sizes else np.zeros((2, 0))
        table = TaskTable(
            self.graph, self.bindings, np.array(begin),
            np.repeat(np.arange(len(begin) - 1), np.diff(begin)),
            np.concatenate(tiles) if tiles else np.zeros((0, MAX_TILE_RANK), np.int64),
            indptr(wait_task, num_tasks), wait_event, indptr(notify_task, num_tasks),
            notify_event, np.zeros(self.num_events, np.int64), self.event_begin, self.event_shape,
            cost_columns[0], cost_columns[1], self.runtime)
        counts = np.bincount(notify_event, minlength=self.num_events)
        self._check_declared_counts(table, counts)
        return replace(table, event_count=counts)

    def _local(self, call: Call, coordinates: IntArray) -> dict[str, Any]:
        return {**self.values, **{k: v.evaluate(self.values) for k, v in call.sizes.items()},
                **dict(zip(call.function.axes, coordinates, strict=True))}

    def _released(self, call: Call, notifies: list[tuple[IntArray, IntArray]]) -> IntArray:
        """[axes, tasks]: coordinates in row-major order, without tiles that no trigger releases
        and tiles that wait for an event whose producers were all left out."""
        grid = [int(n.evaluate(self.values)) for n in call.tile_num]
        if any(n < 0 for n in grid):
            raise GraphError(f"{call.name}: tile_num {call.tile_num} is negative: {grid}")
        coordinates = np.indices(grid).reshape(len(grid), math.prod(grid))
        released = np.ones(coordinates.shape[1], bool)
        for edge in call.in_edges:
            if edge.is_trigger:
                released &= self._triggering_event(call, edge, coordinates, grid) >= 0
        if self.left_out:
            released &= ~self._waits_in_vain(call, coordinates, notifies)
        if not released.all():
            lost = coordinates[:, ~released]
            edges = tuple(edge for edge in call.out_edges if not edge.is_data_dependent)
            self.left_out.append(self._edges(call, edges, lost, self._local(call, lost), 0)[1])
        return coordinates[:, released]

    def _waits_in_vain(self, call: Call, coordinates: IntArray,
                       notifies: list[tuple[IntArray, IntArray]]) -> npt.NDArray[np.bool_]:
        """[tasks]: whether a task waits for an event that only left-out tasks notify."""
        lost = np.bincount(np.concatenate(self.left_out), minlength=self.num_events)
        edges = tuple(edge for edge in call.in_edges
                      if not edge.is_trigger and not edge.is_data_dependent)
        task, event = self._edges(call, edges, coordinates, self._local(call, coordinates), 0)
        arrivals = np.bincount(_concatenate(notifies)[1], minlength=self.num_events)
        partly = (lost[event] > 0) & (arrivals[event] > 0)
        if partly.any():
            name = next(e.name for e, begin in reversed(self.event_begin.items())
                        if begin <= event[np.argmax(partly)])
            raise GraphError(
                f"{call.name} waits for {name}, which counts tasks that may not run as well as "
                f"tasks that do; count only tasks that always run, or notify it through a tensor "
                f"that names who needs it")
        result = np.zeros(coordinates.shape[1], bool)
        result[task[lost[event] > 0]] = True
        return result

    def _edges(self, call: Call, edges: tuple[Edge, ...], coordinates: IntArray,
               local: Mapping[str, Any], first: int) -> tuple[IntArray, IntArray]:
        """(task, event) pairs sorted by task."""
        count = coordinates.shape[1]
        tasks, events = [], []
        for edge in edges:
            if edge.is_trigger:
                grid = [int(n.evaluate(self.values)) for n in call.tile_num]
                task = np.arange(count)
                event = self._triggering_event(call, edge, coordinates, grid)
                event = event + self.event_begin[edge.event]
            else:
                task, event = self._map(call, edge, coordinates, local)
            tasks.append(task + first)
            events.append(event)
        if len(tasks) == 1:
            return tasks[0], events[0]
        if not tasks:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        task, event = np.concatenate(tasks), np.concatenate(events)
        order = np.argsort(task, kind="stable")
        return task[order], event[order]

    def _map(self, call: Call, edge: Edge, coordinates: IntArray, local: Mapping[str, Any]
             ) -> tuple[IntArray, IntArray]:
        """(local task, event) pairs of one edge."""
        shape = self.event_shape[edge.event]
        task, event = mapped_events(call, edge, coordinates, local, shape)
        return task, event + self.event_begin[edge.event]

    def _triggering_event(self, call: Call, edge: Edge, coordinates: IntArray, grid: list[int]
                          ) -> IntArray:
        """[tasks]: index within the event tensor of the event that releases each tile, or -1."""
        owner = np.full(coordinates.shape[1], -1, np.int64)
        shape = self.event_shape[edge.event]
        for flat in range(int(np.prod(shape, dtype=np.int64))):
            index = np.unravel_index(flat, shape or (1,))
            local = {**self.values, **dict(zip(edge.map.axes, map(int, index), strict=False))}
            inside = np.ones(coordinates.shape[1], bool)
            for axis, part in enumerate(edge.map.indices):
                if isinstance(part, IndexRange):
                    low, high = int(part.start.evaluate(local)), int(part.stop.evaluate(local))
                else:
                    low = int(part.evaluate(local))
                    high = low + 1
                if high > low and (low < 0 or high > grid[axis]):
                    raise GraphError(
                        f"event {edge.event.name}[{flat}] releases tiles {low}:{high} of "
                        f"{call.name}, which has {grid[axis]} along {call.function.axes[axis]}")
                inside &= (coordinates[axis] >= low) & (coordinates[axis] < high)
            if (owner[inside] >= 0).any():
                raise GraphError(f"two events of {edge.event.name} release the same tile of "
                                 f"{call.name}; trigger ranges must not overlap")
            owner[inside] = flat
        return owner

    def _check_declared_counts(self, table: TaskTable, counts: IntArray) -> None:
        for event, begin in self.event_begin.items():
            declared: Any
            if isinstance(event.wait_count, Expr):
                declared = event.wait_count.evaluate(self.values)
            elif event.wait_count is RUNTIME and event.count_from is not None:
                if event.count_from.name not in self.values:
                    continue
                declared = np.asarray(self.values[event.count_from.name]).ravel()
            else:
                continue
            size = int(np.prod(self.event_shape[event], dtype=np.int64))
            actual = counts[begin:begin + size]
            wrong = actual != np.broadcast_to(declared, size)
            if wrong.any():
                k = int(np.argmax(wrong))
                want = int(np.broadcast_to(declared, size)[k])
                fate = "would never be reached" if want > actual[k] else "would fire too early"
                raise CountError(
                    f"event {table.event_name(begin + k)} has wait count {want} but "
                    f"{int(actual[k])} tasks notify it: it {fate}; leave wait_count out to have "
                    f"it inferred")


def mapped_events(call: Call, edge: Edge, coordinates: IntArray, local: Mapping[str, Any],
                  shape: tuple[int, ...]) -> tuple[IntArray, IntArray]:
    """(position in `coordinates`, event of an event tensor of this shape) pairs of one edge.

    A range or a partial read gives several events per task. `local` has the values of
    everything that the edge's map names. Raises GraphError for an index out of range.
    """
    count = coordinates.shape[1]
    task = np.arange(count)
    event = np.zeros(count, np.int64)
    stride = 1
    for index, extent in reversed(list(zip(edge.map.indices, shape, strict=True))):
        if isinstance(index, IndexRange):
            start = np.broadcast_to(index.start.evaluate(local), count)[task]
            stop = np.broadcast_to(index.stop.evaluate(local), count)[task]
            lengths = np.maximum(stop - start, 0)
            ends = np.cumsum(lengths)
            offsets = np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths)
            value = np.repeat(start, lengths) + offsets
            task, event = np.repeat(task, lengths), np.repeat(event, lengths)
        elif any(isinstance(node, TensorRead) and node.is_partial for node in index.walk()):
            entries = np.asarray(index.evaluate(local)).reshape(count, -1)[task]
            row, column = np.nonzero(entries >= 0)
            value = entries[row, column].astype(np.int64)
            if len(np.unique(np.stack([row, value]), axis=1).T) < len(row):
                raise GraphError(f"an edge of {call.name} reads {index!r}, which names a place "
                                 f"twice; the entries of one task must differ")
            task, event = task[row], event[row]
        else:
            value = np.broadcast_to(index.evaluate(local), count)[task]
        bad = (value < 0) | (value >= extent)
        if bad.any():
            where = int(np.argmax(bad))
            tile = ", ".join(str(c) for c in coordinates[:, task[where]])
            raise GraphError(
                f"task {call.name}[{tile}] maps to index {int(value[where])} of "
                f"{edge.event.name}, which has {extent} there; correct the map {edge.map!r}")
        event = event + value * stride
        stride *= extent
    return task, event


def _per_task(expr: Expr, local: Mapping[str, Any], count: int) -> npt.NDArray[np.float64]:
    return np.broadcast_to(np.asarray(expr.evaluate(local), np.float64), count)


def _concatenate(pairs: list[tuple[IntArray, IntArray]]) -> tuple[IntArray, IntArray]:
    if not pairs:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return (np.concatenate([task for task, _ in pairs]).astype(np.int64),
            np.concatenate([event for _, event in pairs]).astype(np.int64))
