"""Races: tasks that touch overlapping regions, one writing, with no chain of events between them.

Accesses to a tensor are compared in program order. A call that overwrites the whole tensor closes
its history: what came before is ordered through it. Layers of a model repeat the same shapes, so
which tiles overlap is worked out once per pair of shapes; only their order is asked each time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from event_tensor.ancestors import Ancestors
from event_tensor.device_function import Indexed, Operand, Region, Rows, Span, Tile
from event_tensor.errors import GraphError, RaceError
from event_tensor.graph import Call, covers
from event_tensor.symbols import Symbol
from event_tensor.task_table import IntArray, TaskTable
from event_tensor.tensors import TensorRead, TensorSpec


@dataclass(frozen=True, slots=True)
class _Boxes:
    """The boxes that the tiles of a call access through one operand."""

    key: Hashable  # equal keys mean equal boxes
    tile: IntArray  # [boxes]: the tile of each box; one box per tile, except for `Rows` regions
    low: IntArray  # [boxes, rank]
    high: IntArray
    own_conflict: tuple[int, int] | None  # two tiles of the call that write the same place


@dataclass(frozen=True, slots=True)
class _Access:
    call: Call
    operand: Operand
    boxes: _Boxes


def check_races(table: TaskTable, order: Ancestors) -> None:
    """Raises RaceError naming two tasks and the tensor they race for."""
    _RaceCheck(table, order).run()


class _RaceCheck:
    def __init__(self, table: TaskTable, order: Ancestors) -> None:
        self.table = table
        self.order = order
        self._boxes: dict[Hashable, _Boxes] = {}
        self._pairs: dict[tuple[Hashable, Hashable], tuple[IntArray, IntArray]] = {}

    def run(self) -> None:
        history: dict[TensorSpec, list[_Access]] = defaultdict(list)
        written = {tensor for call in self.table.graph.calls
                   for operand, tensor in call.accesses() if operand.writes}
        for call in self.table.graph.calls:
            if self.table.call_begin[call.index] == self.table.call_begin[call.index + 1]:
                continue
            for operand, tensor in call.accesses():
                if tensor in written:
                    access = _Access(call, operand, self._boxes_of(call, operand, tensor))
                    self._check(access, history[tensor], tensor)
                    if operand.writes and covers(call, operand, tensor):
                        history[tensor] = [a for a in history[tensor] if a.call is call]
                    history[tensor].append(access)

    def _check(self, access: _Access, history: list[_Access], tensor: TensorSpec) -> None:
        conflict = access.boxes.own_conflict
        if access.operand.writes and conflict is not None:
            first = int(self.table.call_begin[access.call.index])
            raise RaceError(
                f"{self.table.task_name(first + conflict[0])} and "
                f"{self.table.task_name(first + conflict[1])} write overlapping parts of "
                f"{tensor.name!r} and run at the same time; give each tile its own part")
        for earlier in history:
            if access.operand.writes or earlier.operand.writes:
                self._check_pair(earlier, access, tensor)

    def _check_pair(self, earlier: _Access, later: _Access, tensor: TensorSpec) -> None:
        key = (earlier.boxes.key, later.boxes.key)
        if key not in self._pairs:
            self._pairs[key] = _overlapping(earlier.boxes, later.boxes)
        first, second = self._pairs[key]
        first = first + self.table.call_begin[earlier.call.index]
        second = second + self.table.call_begin[later.call.index]
        if earlier.call is later.call:  # one task may name a tensor twice
            ordered = first == second
        else:
            ordered = self.order.before(first, second)
        if not ordered.all():
            k = int(np.argmin(ordered))
            verbs = {"read": "reads", "write": "writes", "update": "updates"}
            raise RaceError(
                f"{self.table.task_name(int(first[k]))} {verbs[earlier.operand.access]} and "
                f"{self.table.task_name(int(second[k]))} {verbs[later.operand.access]} "
                f"overlapping parts of {tensor.name!r}, and no chain of events orders them; leave "
                f"the edges out to have them derived, or add an event")

    def _boxes_of(self, call: Call, operand: Operand, tensor: TensorSpec) -> _Boxes:
        table = self.table
        extents = tuple(int(d.evaluate(table.bindings)) for d in tensor.shape)
        region = call.region(operand)
        tile = table.tile[table.call_begin[call.index]:table.call_begin[call.index + 1]]
        grid = [int(n.evaluate(table.bindings)) for n in call.tile_num]
        released = tile.tobytes() if len(tile) < math.prod(grid) else None
        named = tuple(call.operand_tensor(part.by) for part in region if isinstance(part, Rows))
        key = (call.function.axes, call.tile_num, region, named, extents, operand.writes, released)
        if key not in self._boxes:
            owner, low, high = access_boxes(table, call, operand, tensor)
            conflict = (_own_conflict(call, region, tile, owner, low, high) if operand.writes
                        else None)
            self._boxes[key] = _Boxes(key, owner, low, high, conflict)
        return self._boxes[key]


def access_boxes(table: TaskTable, call: Call, operand: Operand, tensor: TensorSpec
                 ) -> tuple[IntArray, IntArray, IntArray]:
    """What the tasks of `call` may access: the tile of each box, its first element and its end,
    [boxes], [boxes, rank] twice.

    Places of an `Indexed` region count as the whole dimension; those of `Rows` are the sample
    values. Raises GraphError where a region starts below 0 or has no sample values.
    """
    tile = table.tile[table.call_begin[call.index]:table.call_begin[call.index + 1]]
    coordinates = {axis: tile[:, k] for k, axis in enumerate(call.function.axes)}
    local = {**table.bindings, **table.runtime, **coordinates}
    extents = np.array([int(d.evaluate(table.bindings)) for d in tensor.shape], np.int64)
    low = np.zeros((len(tile), len(extents)), np.int64)
    high = np.tile(extents.reshape(1, -1), (len(tile), 1))
    for d, (part, extent) in enumerate(zip(call.region(operand), extents, strict=True)):
        if isinstance(part, Tile):
            size = int(part.size.evaluate(table.bindings))
            low[:, d] = coordinates[part.axis] * size
            high[:, d] = np.minimum(low[:, d] + size, extent)
        elif isinstance(part, Span):
            low[:, d] = part.start.evaluate(local)
            high[:, d] = np.minimum(low[:, d] + part.length.evaluate(local), extent)
            if (low[:, d] < 0).any():
                raise GraphError(f"{call.name}: operand {operand.name!r} starts below 0 of "
                                 f"{tensor.name!r}; correct its region")
    owner = np.arange(len(tile))
    for d, part in enumerate(call.region(operand)):
        if isinstance(part, Rows):
            kept, place = _named_places(call, part, local, owner)
            owner, low, high = owner[kept], low[kept], high[kept]
            low[:, d], high[:, d] = place, np.minimum(place + 1, extents[d])
    return owner, low, high


def _named_places(call: Call, rows: Rows, local: Mapping[str, Any], owner: IntArray
                  ) -> tuple[IntArray, IntArray]:
    """(box to repeat, place) pairs: the entries that operand `by` holds for each box's tile."""
    tensor = call.operand_tensor(rows.by)
    read = TensorRead(tensor, tuple(Symbol(axis) for axis in rows.axes))
    values = np.asarray(read.evaluate(local)).reshape(len(local[rows.axes[0]]), -1)[owner]
    box, column = np.nonzero(values >= 0)
    return box, values[box, column].astype(np.int64)


def _overlapping(a: _Boxes, b: _Boxes) -> tuple[IntArray, IntArray]:
    """Pairs (tile of a, tile of b) whose boxes overlap."""
    first, second = _overlap(a.low, a.high, b.low, b.high)
    return a.tile[first], b.tile[second]


def _overlap(low_a: IntArray, high_a: IntArray, low_b: IntArray, high_b: IntArray
             ) -> tuple[IntArray, IntArray]:
    """Pairs (box of a, box of b) that share an element.

    Along one dimension, in the order of their lows, the boxes b that a box may meet follow one
    another: from the first that reaches beyond its low to the last that begins below its high.
    Those of the dimension with the fewest are compared one by one.
    """
    dimensions = low_a.shape[1]
    orders = [np.argsort(low_b[:, d], kind="stable") for d in range(dimensions)]
    begins = [np.searchsorted(np.maximum.accumulate(high_b[order, d]), low_a[:, d], side="right")
              for d, order in enumerate(orders)]
    counts = [np.maximum(np.searchsorted(low_b[order, d], high_a[:, d]) - begins[d], 0)
              for d, order in enumerate(orders)]
    if not dimensions:  # a tensor without dimensions has one element
        orders, begins, counts = ([np.arange(len(low_b))], [np.zeros(len(low_a), np.int64)],
                                  [np.full(len(low_a), len(low_b))])
    best = min(range(len(counts)), key=lambda d: int(counts[d].sum()))
    count = counts[best]
    first = np.repeat(np.arange(len(low_a)), count)
    offset = np.repeat(begins[best] - (np.cumsum(count) - count), count)
    second = orders[best][np.arange(len(first)) + offset]
    shared = np.ones(len(first), bool)
    for d in range(dimensions):
        shared &= (np.maximum(low_a[first, d], low_b[second, d])
                   < np.minimum(high_a[first, d], high_b[second, d]))
    return first[shared], second[shared]


def _own_conflict(call: Call, region: tuple[Region, ...], tile: IntArray, owner: IntArray,
                  low: IntArray, high: IntArray) -> tuple[int, int] | None:
    """Tiles of one call run at once: what they write must not overlap."""
    promised = [d for d, part in enumerate(region) if isinstance(part, Indexed) and part.distinct]
    if promised:
        axes = [call.function.axes.index(part.axis) for part in region
                if isinstance(part, Indexed) and part.distinct and part.axis]
        kept = [d for d in range(low.shape[1]) if d not in promised]
        low = np.concatenate([low[:, kept], tile[owner][:, axes]], axis=1)
        high = np.concatenate([high[:, kept], tile[owner][:, axes] + 1], axis=1)
    if len(low) < 2 or _is_grid_of_disjoint_boxes(low, high):
        return None
    first, second = _overlap(low, high, low, high)
    others = np.flatnonzero(owner[first] != owner[second])
    if not len(others):
        return None
    return int(owner[first[others[0]]]), int(owner[second[others[0]]])


def _is_grid_of_disjoint_boxes(low: IntArray, high: IntArray) -> bool:
    """Quick sufficient test: starts are distinct, and along each dimension a box ends before the
    next start."""
    if len(np.unique(low, axis=0)) != len(low):
        return False
    for d in range(low.shape[1]):
        starts = np.unique(low[:, d])
        following = np.append(starts[1:], np.iinfo(np.int64).max)
        if (high[:, d] > following[np.searchsorted(starts, low[:, d])]).any():
            return False
    return True
