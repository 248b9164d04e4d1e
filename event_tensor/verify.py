"""Proof that a task table is safe under every execution its events allow.

Checked: counts equal the notifies, every wait can be satisfied, no circle of waits, tensors that
edges read exist before they are read, and no race: two tasks that touch overlapping regions of a
tensor, one of them writing, are ordered by a chain of events.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from event_tensor.ancestors import Ancestors, ancestors
from event_tensor.edges import Edge
from event_tensor.errors import CountError, GraphError, RaceError
from event_tensor.graph import Call, Graph
from event_tensor.instantiate import instantiate
from event_tensor.races import access_boxes, check_races
from event_tensor.symbols import Expr
from event_tensor.task_table import Runtime, TaskTable
from event_tensor.tensors import RUNTIME, EventTensor, TensorSpec


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
            count = edge.event.wait_count
            is_given = isinstance(count, Expr) or (
                count is RUNTIME and edge.event.count_from is not None)
            if edge.is_data_dependent and not is_given:
                raise GraphError(
                    f"{call.name} chooses at run time which event of {edge.event.name} it "
                    f"notifies, so its counts cannot be inferred; declare wait_count=RUNTIME and "
                    f"count_from, or a count that every choice of the tasks reaches")


def verify_table(table: TaskTable) -> Ancestors:
    """Prove one instantiated table; returns the ancestor sets for further questions."""
    check_counts(table)
    _check_waits(table)
    order = ancestors(table)
    _check_runtime_reads(table, order)
    check_races(table, order)
    return order


def check_counts(table: TaskTable) -> None:
    """Raises CountError for an awaited event whose count is not the number of its notifies."""
    arrivals = np.bincount(table.notify_event, minlength=table.num_events)
    awaited = np.unique(table.wait_event)
    wrong = awaited[arrivals[awaited] != table.event_count[awaited]]
    if len(wrong):
        event = int(wrong[0])
        raise CountError(
            f"{table.event_name(event)} waits for {int(table.event_count[event])} notifies and "
            f"{int(arrivals[event])} tasks notify it; infer the count again after changing edges")


def _check_waits(table: TaskTable) -> None:
    silent = table.event_count[table.wait_event] == 0
    if not silent.any():
        return
    empty_producers = {
        edge.event for call in table.graph.calls for edge in call.out_edges
        if table.call_begin[call.index] == table.call_begin[call.index + 1]}
    for position in np.flatnonzero(silent):
        event = int(table.wait_event[position])
        if table.event_tensor(event) not in empty_producers:
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
    triggers: dict[EventTensor, set[TensorSpec]] = defaultdict(set)
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
                    else:
                        _require_own_part(table, call, edge, tensor)


def _require_own_part(table: TaskTable, call: Call, edge: Edge, tensor: TensorSpec) -> None:
    """A task may use what it writes itself; what other tiles of its call write is not there yet."""
    tasks = table.tasks_of(call.index)
    axes = {axis: table.tile[tasks, k] for k, axis in enumerate(call.function.axes)}
    values = {**table.bindings, **table.runtime, **axes}
    boxes = [access_boxes(table, call, operand, written)
             for operand, written in call.accesses() if operand.writes and written is tensor]
    for read in edge.map.reads_of(tensor):
        place = np.stack([np.broadcast_to(index.evaluate(values), len(tasks))
                          for index in read.indices], axis=1)
        rank = len(read.indices)
        rest = [int(d.evaluate(table.bindings)) for d in tensor.shape[rank:]]
        own = np.zeros(len(tasks), bool)
        for tile, low, high in boxes:
            inside = ((low[:, :rank] <= place[tile]) & (place[tile] < high[:, :rank])).all(axis=1)
            inside &= ((high - low)[:, rank:] == rest).all(axis=1)
            own[tile[inside]] = True
        if not own.all():
            task = int(tasks[np.argmin(own)])
            raise RaceError(
                f"task {table.task_name(task)} evaluates an edge of {edge.event.name} from a part "
                f"of {tensor.name!r} that another tile of {call.name} writes; read it in a later "
                f"call")


def _require_order(table: TaskTable, order: Ancestors, writer: int, call: Call,
                   tensor: TensorSpec, event: str) -> None:
    earlier, later = table.tasks_of(writer), table.tasks_of(call.index)
    ordered = order.before(earlier[None, :], later[:, None])
    if not ordered.all():
        late, early = np.argwhere(~ordered)[0]
        raise RaceError(
            f"task {table.task_name(int(later[late]))} evaluates an edge of {event} from "
            f"{tensor.name!r} before {table.task_name(int(earlier[early]))} must have written it; "
            f"add an event between them")
