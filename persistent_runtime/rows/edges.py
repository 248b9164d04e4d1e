"""The edges of a schedule as workers read them: waits, notifies, actions, and what is pushed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from event_tensor.conservative import conditional_calls
from event_tensor.edges import Edge, IndexRange
from event_tensor.errors import GraphError
from event_tensor.graph import Call
from event_tensor.instantiate import mapped_events
from event_tensor.symbols import Binary, Constant, Expr
from event_tensor.task_table import IntArray
from event_tensor.tensors import TensorRead, TensorSpec
from persistent_runtime.rows import layout
from persistent_runtime.rows.event_index import EventIndex
from scheduling.early import early_events
from scheduling.schedule import Schedule

Int32Array = npt.NDArray[np.int32]
Pairs = tuple[IntArray, IntArray]  # tasks, events
AddressWord = Callable[[TensorSpec], int]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedEdges:
    """Arrays of layout.py; the ranges of task t are `x_indptr[t]:x_indptr[t + 1]`."""

    events: EventIndex
    wait_indptr: IntArray
    waits: Int32Array
    notify_indptr: IntArray
    notifies: Int32Array
    action_indptr: IntArray
    actions: Int32Array
    event_records: Int32Array
    consumers: Int32Array
    triggers: Int32Array
    joins: Int32Array
    roots: Int32Array
    left_over: Int32Array


def encode_edges(schedule: Schedule, order: IntArray, address_word: AddressWord) -> EncodedEdges:
    """`order`: the task of every row. `address_word`: tensor → argument-table word with its
    address. Raises GraphError for a data-dependent edge in a form that does not execute."""
    edges = _Edges(schedule, order, address_word)
    edges.collect()
    if schedule.early:
        edges.push_early(early_events(schedule))
    return edges.encode()


class _Edges:
    def __init__(self, schedule: Schedule, order: IntArray, address_word: AddressWord
                 ) -> None:
        self.table, self.queued = schedule.table, schedule.queued
        self.address_word = address_word
        self.conditional = sorted(conditional_calls(self.table.graph.original))
        self.row_of = np.empty(self.table.num_tasks, np.int64)
        self.row_of[order] = np.arange(len(order))
        self.is_queued = np.zeros(self.table.num_tasks, bool)
        self.is_queued[schedule.queued] = True
        self.events = EventIndex(self.table)
        self.waits: list[Pairs] = []  # where a task runs
        self.pushes: list[Pairs] = []  # what a queued task must have before it is pushed
        self.notifies: list[Pairs] = []
        self.triggers: list[tuple[list[int], IntArray]] = []  # words, tasks
        self.actions: list[tuple[IntArray, Int32Array]] = []  # tasks, words
        self.awaited_in_rows = np.zeros(len(self.events), bool)  # by waits that are actions

    def collect(self) -> None:
        table = self.table
        chosen = np.zeros(table.num_events, bool)
        chosen[[b for e, b in table.event_begin.items() if e.stands_for is not None]] = True
        kept = ~chosen[table.wait_event]
        task, event = table.wait_task[kept], table.wait_event[kept]
        # an event of count 0 never fires, so it must not gate a push
        kept = ~self.is_queued[task] | (table.event_count[event] > 0)
        self._add_waits(task[kept], event[kept])
        kept = ~chosen[table.notify_event]
        self.notifies.append((table.notify_task[kept], table.notify_event[kept]))
        for call in table.graph.original.calls if self.events.begin else ():
            for edge in call.in_edges:
                if edge.event in self.events.begin:
                    self._add_in_edge(call, edge)
            for edge in call.out_edges:
                if edge.event not in self.events.begin:
                    continue
                if edge.is_data_dependent:
                    self._act_on_read(call, edge, layout.NOTIFY_READ)
                else:
                    self.notifies.append(self._pairs(call, edge))
            self._add_clears(call)

    def _local(self, call: Call) -> tuple[IntArray, dict[str, Any]]:
        tasks = self.table.tasks_of(call.index)
        values: dict[str, Any] = dict(self.table.bindings)
        values |= {k: v.evaluate(self.table.bindings) for k, v in call.sizes.items()}
        values |= {axis: self.table.tile[tasks, k] for k, axis in enumerate(call.function.axes)}
        return tasks, values

    def _pairs(self, call: Call, edge: Edge) -> Pairs:
        """(task, event) of an edge that reads no tensor."""
        tasks, local = self._local(call)
        coordinates = self.table.tile[tasks, :len(call.tile_num)].T
        shape = self.events.shape[edge.event]
        position, event = mapped_events(call, edge, coordinates, local, shape)
        return tasks[position], event + self.events.begin[edge.event]

    def _add_waits(self, task: IntArray, event: IntArray) -> None:
        queued = self.is_queued[task]
        self.pushes.append((task[queued], event[queued]))
        self.waits.append((task[~queued], event[~queued]))

    def _add_in_edge(self, call: Call, edge: Edge) -> None:
        tasks = self.table.tasks_of(call.index)
        if not len(tasks):
            return
        if edge.is_trigger:
            self._add_trigger(call, edge, tasks)
        elif edge.is_data_dependent:
            self._act_on_read(call, edge, layout.AWAIT_READ)
            self.awaited_in_rows[self.events.range_of(edge.event)] = True
        elif isinstance(edge.event.wait_count, Expr) or self.is_queued[tasks[0]]:
            self._add_waits(*self._pairs(call, edge))
        else:
            task, event = self._pairs(call, edge)
            self._act(task, layout.AWAIT, event)

    def _add_trigger(self, call: Call, edge: Edge, tasks: IntArray) -> None:
        word = self.address_word(_indptr_of(call, edge))
        begin = self.events.begin[edge.event]
        if self.is_queued[tasks[0]]:
            tiles = int(self.table.tile[tasks, 0].max()) + 1
            self.triggers.append(([word, begin, int(self.row_of[tasks[0]]), len(tasks) // tiles,
                                   tiles], tasks))
        else:
            self._act(tasks, layout.AWAIT_RELEASE, begin, tensor=word,
                      length=self.events.shape[edge.event][0])
            self.awaited_in_rows[self.events.range_of(edge.event)] = True

    def _add_clears(self, call: Call) -> None:
        """The call that writes events' counts clears their counters: every notify comes later."""
        written = {tensor for operand, tensor in call.accesses() if operand.writes}
        for event, begin in self.events.begin.items():
            if event.count_from in written and not isinstance(event.wait_count, Expr):
                span = self.events.range_of(event)
                self._act(self.table.tasks_of(call.index), layout.CLEAR, begin,
                          length=span.stop - span.start)

    def _act_on_read(self, call: Call, edge: Edge, kind: int) -> None:
        tasks, local = self._local(call)
        event = np.full(len(tasks), self.events.begin[edge.event], np.int64)
        stride = 1
        words: dict[str, Any] = {}
        shape = self.events.shape[edge.event]
        for index, extent in reversed(list(zip(edge.map.indices, shape, strict=True))):
            if isinstance(index, TensorRead) and not words:
                words = self._read_words(call, index, local) | {"stride": stride, "extent": extent}
            elif isinstance(index, IndexRange) or any(
                    isinstance(node, TensorRead) for node in index.walk()):
                raise GraphError(
                    f"edge {call.name} – {edge.event.name}: the map {edge.map!r} does not execute; "
                    f"read one tensor, as an index by itself, beside indices that read none")
            else:
                event = event + index.evaluate(local) * stride
            stride *= extent
        self._act(tasks, kind, event, **words)

    def _read_words(self, call: Call, read: TensorRead, local: dict[str, Any]) -> dict[str, Any]:
        _check_int32(call, read.tensor)
        dims = [int(d.evaluate(self.table.bindings)) for d in read.tensor.shape]
        first: Any = 0
        for dim, index in zip(dims, read.indices, strict=False):
            first = first * dim + index.evaluate(local)
        length = int(np.prod(dims[len(read.indices):], dtype=np.int64))
        return {"tensor": self.address_word(read.tensor), "first": first * length,
                "length": length}

    def _act(self, task: IntArray, kind: int, event: Any, *, tensor: int = 0, first: Any = 0,
             length: int = 0, stride: int = 0, extent: int = 0) -> None:
        words = np.zeros((len(task), layout.ACTION_WORDS), np.int32)
        for place, value in ((layout.ACTION, kind), (layout.ACTION_EVENT, event),
                             (layout.ACTION_TENSOR, tensor), (layout.ACTION_FIRST, first),
                             (layout.ACTION_LENGTH, length), (layout.ACTION_STRIDE, stride),
                             (layout.ACTION_EXTENT, extent)):
            words[:, place] = value
        self.actions.append((task, words))

    def push_early(self, suits: npt.NDArray[np.bool_]) -> None:
        """The events of the table that suit get a twin that counts dispatched producers and
        pushes; the consumer then waits for the event where it runs (scheduling/early.py)."""
        suits = np.concatenate([suits, np.zeros(len(self.events) - len(suits), bool)])
        task, event = _concatenated(self.pushes)
        is_early = suits[event]
        early = np.unique(event[is_early])
        twin = np.arange(len(self.events))
        twin[early] = self.events.add_twins(early)
        self.waits.append((task[is_early], event[is_early]))
        self.pushes = [(task, twin[event])]
        producer, notified = _concatenated(self.notifies)
        dispatched = twin[notified] != notified
        self._act(producer[dispatched], layout.DISPATCH, twin[notified[dispatched]])
        self.awaited_in_rows = np.concatenate([self.awaited_in_rows, np.zeros(len(early), bool)])

    def encode(self) -> EncodedEdges:
        tasks, counts = self.table.num_tasks, self.events.counts
        wait_task, wait_event = _sorted_pairs(self.waits)
        waits = np.zeros((len(wait_event), layout.WAIT_WORDS), np.int32)
        waits[:, layout.WAIT_EVENT] = wait_event
        waits[:, layout.WAIT_COUNT] = counts[wait_event]
        self.awaited_in_rows[wait_event] = True
        push_task, push_event = _concatenated(self.pushes)
        order = np.argsort(push_event, kind="stable")
        records, triggers = self._event_records(_indptr(push_event[order], len(self.events)))
        task, event = _concatenated(self.notifies)
        is_action = (_fires(records) | self.events.is_counted_on_device)[event]
        self._act(task[is_action], layout.NOTIFY, event[is_action])
        notify_task, notify_event = _sorted_pairs([(task[~is_action], event[~is_action])])
        action_task = np.concatenate([task for task, _ in self.actions])
        actions = np.concatenate([words for _, words in self.actions])
        by_task = np.lexsort((actions[:, layout.ACTION], action_task))
        joins = np.bincount(push_task, minlength=tasks)
        for _, triggered in self.triggers:
            joins[triggered] += 1
        joins = joins[self.queued]
        is_conditional = np.isin(self.table.call[self.queued], self.conditional)
        has_records = bool(self.events.begin) or len(self.queued) > 0
        return EncodedEdges(
            self.events, _indptr(wait_task, tasks), waits, _indptr(notify_task, tasks),
            notify_event.astype(np.int32), _indptr(action_task[by_task], tasks),
            actions[by_task], records if has_records else records[:0],
            self.row_of[push_task[order]].astype(np.int32), triggers,
            np.stack([joins, is_conditional], axis=1).astype(np.int32),
            self.row_of[self.queued[joins == 0]].astype(np.int32),
            np.flatnonzero(is_conditional & (joins > 1)).astype(np.int32))

    def _event_records(self, consumer_indptr: IntArray) -> tuple[Int32Array, Int32Array]:
        """Records of all events, and the triggers, by event tensor."""
        events = self.events
        records = np.zeros((len(events), layout.EVENT_WORDS), np.int32)
        records[:, layout.EVENT_COUNT] = events.counts
        records[:, layout.CONSUMER_BEGIN] = consumer_indptr[:-1]
        records[:, layout.CONSUMER_END] = consumer_indptr[1:]
        triggers = np.zeros((len(self.triggers), layout.TRIGGER_WORDS), np.int32)
        for k, (words, _) in enumerate(sorted(self.triggers, key=lambda t: t[0][1])):
            triggers[k, :len(words)] = words
        first_event = triggers[:, layout.TRIGGER_EVENT]
        for event, begin in events.begin.items():
            span = events.range_of(event)
            records[span, layout.TRIGGER_BEGIN] = np.searchsorted(first_event, begin)
            records[span, layout.TRIGGER_END] = np.searchsorted(first_event, begin, "right")
            if event.count_from is not None and not isinstance(event.wait_count, Expr):
                records[span, layout.EVENT_COUNTS] = self.address_word(event.count_from)
                records[span, layout.EVENT_COUNT_INDEX] = np.arange(span.stop - span.start)
        resets = _fires(records) & ~self.awaited_in_rows & (events.counts > 0)
        records[:, layout.EVENT_RESETS] = resets
        return records, triggers


def _fires(records: Int32Array) -> npt.NDArray[np.bool_]:
    """[events]: whether the last notify pushes anything."""
    return ((records[:, layout.CONSUMER_BEGIN] < records[:, layout.CONSUMER_END])
            | (records[:, layout.TRIGGER_BEGIN] < records[:, layout.TRIGGER_END]))


def _indptr_of(call: Call, edge: Edge) -> TensorSpec:
    """The tensor T of a trigger `span(T[e], T[e + 1])`."""
    part = edge.map.indices[0]
    if len(edge.map.indices) == len(edge.map.axes) == 1 and isinstance(part, IndexRange):
        start, stop = part.start, part.stop
        if (isinstance(start, TensorRead) and isinstance(stop, TensorRead)
                and start.tensor is stop.tensor
                and stop.indices == (Binary("+", start.indices[0], Constant(1)),)):
            _check_int32(call, start.tensor)
            return start.tensor
    raise GraphError(f"trigger of {call.name} from {edge.event.name}: {edge.map!r} does not "
                     f"execute; write trigger(lambda e: span(T[e], T[e + 1]))")


def _check_int32(call: Call, tensor: TensorSpec) -> None:
    if tensor.dtype != "int32":
        raise GraphError(f"an edge of {call.name} reads {tensor!r}; make it int32")


def _concatenated(pairs: Sequence[Pairs]) -> Pairs:
    return np.concatenate([t for t, _ in pairs]), np.concatenate([e for _, e in pairs])


def _sorted_pairs(pairs: Sequence[Pairs]) -> Pairs:
    task, event = _concatenated(pairs)
    order = np.argsort(task, kind="stable")
    return task[order], event[order]


def _indptr(sorted_owner: IntArray, count: int) -> IntArray:
    indptr = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(sorted_owner, minlength=count), out=indptr[1:])
    return indptr
