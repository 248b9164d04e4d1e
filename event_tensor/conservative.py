"""The conservative form of a graph: what holds whatever the values of data-dependent edges are.

Every event tensor that some task chooses from at run time becomes one event for all its notifies
and all its waits (the paper's static rewriting). A schedule that this graph accepts cannot block
for any values: what really happens waits for less. The runtime puts the real edges back.

Tensors that edges read are written by one call each; an event of their own tells when they are
complete, so that no task reads what the last step left there.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from event_tensor.edges import Edge, IndexMap
from event_tensor.errors import GraphError
from event_tensor.graph import Call, Graph
from event_tensor.task_table import TaskTable
from event_tensor.tensors import EventTensor, TensorSpec


def data_dependent_events(graph: Graph) -> tuple[EventTensor, ...]:
    """Event tensors with an edge that reads a tensor, or with counts from one."""
    return tuple(event for event in graph.events() if event.count_from is not None or any(
        edge.is_data_dependent for call in graph.calls
        for edge in (*call.in_edges, *call.out_edges) if edge.event is event))


def conservative(graph: Graph) -> Graph:
    """The graph with one event for each data-dependent event tensor; dense graphs stay as they
    are. Raises GraphError for a tensor that edges read and several calls write, and for tiles that
    may not run but are counted on the device."""
    chosen = {event: EventTensor((), name=f"{event.name}_any", stands_for=event)
              for event in data_dependent_events(graph)}
    if not chosen:
        return graph
    _check_device_counts(graph)
    in_edges = {call.index: [_simplified(e, chosen, call) for e in call.in_edges]
                for call in graph.calls}
    out_edges = {call.index: [_simplified(e, chosen, call) for e in call.out_edges]
                 for call in graph.calls}
    written: dict[int, EventTensor] = {}
    writers = _writers(graph)
    for call in graph.calls:
        tensors = {t: None for e in (*call.in_edges, *call.out_edges) for t in values_read(e)}
        for writer in {_only_writer(writers, tensor): None for tensor in tensors}:
            if writer is call:
                continue
            if writer.index not in written:
                written[writer.index] = EventTensor((), name=f"E_{writer.name}_values")
                out_edges[writer.index].append(_scalar_edge(written[writer.index], writer))
            in_edges[call.index].append(_scalar_edge(written[writer.index], call))
    return Graph(graph.name, [
        replace(call, in_edges=tuple(in_edges[call.index]), out_edges=tuple(out_edges[call.index]))
        for call in graph.calls], graph)


def values_read(edge: Edge) -> tuple[TensorSpec, ...]:
    """Tensors that must be complete before a task uses the edge: those that its map reads, and the
    counts of its event."""
    counts = (edge.event.count_from,) if edge.event.count_from is not None else ()
    return (*edge.map.tensors_read(), *counts)


def conditional_calls(graph: Graph) -> frozenset[int]:
    """Calls whose tiles may not run: triggered calls, and calls that wait for tiles of these."""
    result: set[int] = set()
    events: set[EventTensor] = set()
    for call in graph.calls:
        if call.is_triggered or any(edge.event in events and not edge.is_data_dependent
                                    for edge in call.in_edges):
            result.add(call.index)
            events |= {edge.event for edge in call.out_edges if not edge.is_data_dependent}
    return frozenset(result)


def conservative_events(table: TaskTable) -> npt.NDArray[np.bool_]:
    """[events]: whether the event stands for a whole event tensor."""
    result = np.zeros(table.num_events, bool)
    for tensor, begin in table.event_begin.items():
        if tensor.stands_for is not None:
            result[begin] = True
    return result


def _check_device_counts(graph: Graph) -> None:
    """A static schedule skips tiles that wait for unused ones, and no event may count them;
    a triggered tile's own row knows that it is unused."""
    conditional = conditional_calls(graph)
    for call in graph.calls:
        if call.index in conditional and not call.is_triggered:
            for edge in call.out_edges:
                if edge.event.count_from is not None and not edge.is_data_dependent:
                    raise GraphError(
                        f"tiles of {call.name} may not run, and they notify {edge.event.name}, "
                        f"whose counts are in a tensor; notify it through a tensor as well")


def _simplified(edge: Edge, chosen: dict[EventTensor, EventTensor], call: Call) -> Edge:
    return _scalar_edge(chosen[edge.event], call) if edge.event in chosen else edge


def _scalar_edge(event: EventTensor, call: Call) -> Edge:
    return Edge(event, IndexMap(call.function.axes, ()))


def _writers(graph: Graph) -> dict[TensorSpec, list[Call]]:
    writers: dict[TensorSpec, list[Call]] = defaultdict(list)
    for call in graph.calls:
        for tensor in {t: None for operand, t in call.accesses() if operand.writes}:
            writers[tensor].append(call)
    return writers


def _only_writer(writers: dict[TensorSpec, list[Call]], tensor: TensorSpec) -> Call:
    calls = writers[tensor]
    if len(calls) != 1:
        names = " and ".join(call.name for call in calls) or "no calls"
        raise GraphError(f"edges read tensor {tensor.name!r}, which {names} write: a task that has "
                         f"nothing to do may look at it late; give every call its own tensor")
    return calls[0]
