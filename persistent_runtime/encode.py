"""Schedules and argument records as the arrays that workers read (layout.py)."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from event_tensor.graph import Graph
from event_tensor.symbols import Constant, Expr
from event_tensor.tensors import TensorSpec
from persistent_runtime import layout
from persistent_runtime.prefetch import encode_prefetches
from scheduling.static_schedule import StaticSchedule

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedSchedule:
    schedule: StaticSchedule
    rows: Int32Array  # [tasks, ROW_WORDS], worker after worker
    row_begin: Int64Array  # [workers + 1]
    waits: Int32Array  # [waits, WAIT_WORDS]
    notifies: Int32Array  # [notifies]
    prefetches: Int32Array  # [pieces, PREFETCH_WORDS]
    num_events: int


def encode_schedule(schedule: StaticSchedule, kinds: Mapping[str, int],
                    argument_begin: Int64Array, prefetch_bytes: int = 0) -> EncodedSchedule:
    """`kinds`: device function name → index in the function table; `argument_begin`: offset of
    each call's argument record; `prefetch_bytes`: how far ahead a worker asks for weights."""
    table = schedule.table
    order = np.concatenate([*schedule.orders, np.zeros(0, np.int64)]).astype(np.int64)
    call = table.call[order]
    kind_of_call = np.array([kinds[c.function.name] for c in table.graph.calls], np.int64)
    rows = np.zeros((len(order), layout.ROW_WORDS), np.int32)
    rows[:, layout.KIND] = kind_of_call[call]
    rows[:, layout.ARGUMENTS] = argument_begin[call]
    rows[:, layout.TILE:layout.TILE + layout.MAX_TILE_RANK] = table.tile[order]
    rows[:, layout.WAIT_BEGIN] = table.wait_indptr[order]
    rows[:, layout.WAIT_END] = table.wait_indptr[order + 1]
    rows[:, layout.NOTIFY_BEGIN] = table.notify_indptr[order]
    rows[:, layout.NOTIFY_END] = table.notify_indptr[order + 1]
    rows[:, layout.TASK] = order
    prefetches, prefetch_indptr = encode_prefetches(table, schedule.orders, argument_begin,
                                                    prefetch_bytes)
    rows[:, layout.PREFETCH_BEGIN] = prefetch_indptr[:-1]
    rows[:, layout.PREFETCH_END] = prefetch_indptr[1:]
    waits = np.zeros((len(table.wait_event), layout.WAIT_WORDS), np.int32)
    waits[:, layout.WAIT_EVENT] = table.wait_event
    waits[:, layout.WAIT_COUNT] = table.event_count[table.wait_event]
    row_begin = np.cumsum([0, *(len(o) for o in schedule.orders)], dtype=np.int64)
    return EncodedSchedule(schedule, rows, row_begin, waits,
                           table.notify_event.astype(np.int32), prefetches.astype(np.int32),
                           table.num_events)


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

    def encode(self, bindings: Mapping[str, int], addresses: Mapping[TensorSpec, int]
               ) -> Int64Array:
        """The argument table. Every tensor of the graph must have an address."""
        words = self._template.copy()
        for tensor, positions in self._address_at.items():
            words[positions] = addresses[tensor]
        for expr, positions in self._symbolic.items():
            words[positions] = expr.evaluate(bindings)
        return words


def address_of(array: npt.NDArray[Any]) -> int:
    return int(array.ctypes.data)
