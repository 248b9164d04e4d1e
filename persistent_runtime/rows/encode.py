"""Schedules and argument records as the arrays that workers read (layout.py)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from event_tensor.graph import Graph
from event_tensor.symbols import Constant, Expr
from event_tensor.tensors import TensorSpec
from persistent_runtime.function_table import FunctionTable
from persistent_runtime.rows import layout
from persistent_runtime.rows.edges import EncodedEdges, encode_edges
from scheduling.schedule import Schedule

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedSchedule:
    schedule: Schedule
    rows: Int32Array  # [tasks, ROW_WORDS], worker after worker, then the queued tasks
    row_begin: Int64Array  # [workers + 1]
    edges: EncodedEdges
    # word of the segment record → an array that only one backend's workers read
    of_backend: Mapping[int, npt.NDArray[Any]] = field(default_factory=dict)

    @property
    def waits(self) -> Int32Array:
        return self.edges.waits

    @property
    def notifies(self) -> Int32Array:
        return self.edges.notifies

    @property
    def num_events(self) -> int:
        return len(self.edges.events)

    @property
    def num_queued(self) -> int:
        return len(self.edges.joins)

    def arrays(self) -> dict[int, npt.NDArray[Any]]:
        """Word of the segment record → the array whose address belongs there."""
        edges = self.edges
        return {layout.ROWS: self.rows, layout.ROW_BEGIN: self.row_begin,
                layout.WAITS: edges.waits, layout.NOTIFIES: edges.notifies,
                layout.ACTIONS: edges.actions, layout.EVENT_RECORDS: edges.event_records,
                layout.CONSUMERS: edges.consumers, layout.TRIGGERS: edges.triggers,
                layout.JOINS: edges.joins, layout.ROOTS: edges.roots,
                layout.LEFT_OVER: edges.left_over, **self.of_backend}

    def sizes(self) -> dict[int, int]:
        """Word of the segment record → its value."""
        return {layout.NUM_ROOTS: len(self.edges.roots),
                layout.FIRST_QUEUED: len(self.rows) - self.num_queued,
                layout.NUM_DUE: int((self.edges.joins[:, layout.JOIN_CONDITIONAL] == 0).sum()),
                layout.NUM_LEFT_OVER: len(self.edges.left_over),
                layout.NUM_CALLS: len(self.schedule.table.graph.calls)}


def encode_schedule(schedule: Schedule, kinds: FunctionTable,
                    arguments: ArgumentEncoder) -> EncodedSchedule:
    """`kinds`: the kernel's function table."""
    table = schedule.table
    order = np.concatenate([*schedule.orders, schedule.queued]).astype(np.int64)
    call = table.call[order]
    kind_of_call = np.array([kinds.kind_of(c) for c in table.graph.calls], np.int64)
    edges = encode_edges(schedule, order, arguments.address_word)
    rows = np.zeros((len(order), layout.ROW_WORDS), np.int32)
    rows[:, layout.ARGUMENTS] = arguments.begin[call]
    rows[:, layout.TILE:layout.TILE + layout.MAX_TILE_RANK] = table.tile[order]
    for indptr, begin, end in (
            (edges.wait_indptr, layout.WAIT_BEGIN, layout.WAIT_END),
            (edges.notify_indptr, layout.NOTIFY_BEGIN, layout.NOTIFY_END),
            (edges.action_indptr, layout.ACTION_BEGIN, layout.ACTION_END)):
        rows[:, begin] = indptr[order]
        rows[:, end] = indptr[order + 1]
    rows[:, layout.KIND] = kind_of_call[call] + layout.ACTS * (
        rows[:, layout.ACTION_BEGIN] < rows[:, layout.ACTION_END])
    rows[:, layout.TASK] = order
    rows[:, layout.CALL] = call
    row_begin = np.cumsum([0, *(len(o) for o in schedule.orders)], dtype=np.int64)
    return EncodedSchedule(schedule, rows, row_begin, edges)


class ArgumentEncoder:
    """Argument records of a graph: constants once, symbolic sizes again for new bindings."""

    def __init__(self, graph: Graph) -> None:
        self.begin = np.zeros(len(graph.calls), np.int64)
        words: list[int] = []
        self._address_at: dict[TensorSpec, list[int]] = {}
        self._symbolic: dict[Expr, list[int]] = {}
        for call in graph.calls:
            self.begin[call.index] = len(words)
            for tensor in call.args:
                if tensor is not None:
                    self._address_at.setdefault(tensor, []).append(len(words) + layout.ADDRESS)
                dims = tensor.shape if tensor is not None else ()
                words.append(0)
                for d in range(layout.MAX_RANK):
                    words.append(self._word(dims[d] if d < len(dims) else 1, len(words)))
            for value in call.parameters.values():
                words.append(self._word(value, len(words)))
        self._template = np.array(words, np.int64)

    def _word(self, value: Expr | float | int, position: int) -> int:
        if isinstance(value, Constant):
            return value.value
        if isinstance(value, Expr):
            self._symbolic.setdefault(value, []).append(position)
            return 0
        if isinstance(value, float):
            return int(struct.unpack("q", struct.pack("d", value))[0])
        return int(value)

    def address_word(self, tensor: TensorSpec) -> int:
        """A word of the argument table that holds the tensor's address."""
        return self._address_at[tensor][0]

    def encode(self, bindings: Mapping[str, int], addresses: Mapping[TensorSpec, int]
               ) -> Int64Array:
        """The argument table. Every tensor of the graph must have an address."""
        words = self._template.copy()
        for tensor, positions in self._address_at.items():
            words[positions] = addresses[tensor]
        for expr, positions in self._symbolic.items():
            words[positions] = expr.evaluate(bindings)
        return words
