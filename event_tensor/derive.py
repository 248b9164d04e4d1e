"""Derivation of event tensors from what tiles read and write.

Calls are taken in program order. For every operand the pass finds the earlier accesses it
conflicts with (read after write, write after read, write after write), drops those that the
edges found so far already imply, and makes an event tensor for each of the rest. Per dimension:

- producer and consumer tiles equal: one event per tile;
- consumer tile m times the producer's: count m, producer i notifies event i // m;
- producer tile m times the consumer's: consumer i waits for event i // m;
- anything else: one event for the whole dimension.

Where written data-dependent edges lead from the producer to the consumer, they order what must be
ordered, and nothing is derived: `verify` holds them to it with sample values.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from event_tensor.device_function import Operand, Region, Tile
from event_tensor.edges import Edge, IndexMap
from event_tensor.graph import Call, Graph, covers
from event_tensor.ordering import Ordering, OrderingIndex, Overlap, size_ratio
from event_tensor.symbols import Expr, Symbol, ceil_div
from event_tensor.tensors import EventTensor, TensorSpec


@dataclass(frozen=True, slots=True)
class _Access:
    call: Call
    operand: Operand
    region: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class _Hazard:
    producer: Call
    consumer: Call
    tensor: TensorSpec
    ordering: Ordering


def derive_events(graph: Graph) -> Graph:
    """A new graph whose edges order every pair of conflicting tiles; written edges stay.

    Two tiles of one call never wait for each other: `verify` rejects a call whose own tiles
    conflict.
    """
    index = OrderingIndex()
    history: dict[TensorSpec, list[_Access]] = defaultdict(list)
    in_edges: dict[int, list[Edge]] = defaultdict(list)
    out_edges: dict[int, list[Edge]] = defaultdict(list)
    events: dict[tuple[int, IndexMap], EventTensor] = {}
    for call in graph.calls:
        index.add_call(call)
        accesses = [(_Access(call, operand, call.region(operand)), tensor)
                    for operand, tensor in call.accesses()]
        hazards = [hazard for access, tensor in accesses
                   for hazard in _hazards(access, tensor, history[tensor])]
        # nearest producers first: later candidates are then often implied by chains through them;
        # among those of one producer, the edge that orders most pairs first
        hazards.sort(key=lambda h: (-h.producer.index, len(h.ordering)))
        for hazard in hazards:
            producer = hazard.producer.index
            if (index.is_behind_choice(producer, call.index)
                    or index.is_implied(producer, call.index, hazard.ordering)):
                continue
            index.add(producer, call.index, hazard.ordering)
            producer_map, consumer_map, shape = _event_maps(hazard)
            key = (hazard.producer.index, producer_map)
            if key not in events:
                name = f"E_{hazard.producer.name}"
                if any(i == hazard.producer.index for i, _ in events):
                    name += f"_for_{call.name}"
                events[key] = EventTensor(shape, name=name)
                out_edges[hazard.producer.index].append(Edge(events[key], producer_map))
            in_edges[call.index].append(Edge(events[key], consumer_map))
        for access, tensor in accesses:
            _record(history[tensor], access, tensor)
    return Graph(graph.name, [
        replace(call, in_edges=call.in_edges + tuple(in_edges[call.index]),
                out_edges=call.out_edges + tuple(out_edges[call.index]))
        for call in graph.calls])


def _hazards(access: _Access, tensor: TensorSpec, history: list[_Access]) -> list[_Hazard]:
    return [
        _Hazard(earlier.call, access.call, tensor, _tile_ordering(earlier, access, tensor))
        for earlier in history
        if earlier.call is not access.call and (access.operand.writes or earlier.operand.writes)]


def _record(history: list[_Access], access: _Access, tensor: TensorSpec) -> None:
    """After a write of the whole tensor, earlier accesses are ordered through it.

    An access of the same call stays: two operands of one call may name one tensor.
    """
    if access.operand.writes and covers(access.call, access.operand, tensor):
        history[:] = [earlier for earlier in history if earlier.call is access.call]
    history.append(access)


def _tile_ordering(p: _Access, c: _Access, tensor: TensorSpec) -> Ordering:
    """The pairs of tiles that must be ordered, dimension by dimension; coarser where unsure."""
    p_grid = dict(zip(p.call.function.axes, p.call.tile_num, strict=True))
    overlaps: list[Overlap] = []
    used: set[tuple[str, str]] = set()
    regions = zip(p.region, c.region, tensor.shape, strict=True)
    for p_part, c_part, dim in regions:
        if not (isinstance(p_part, Tile) and isinstance(c_part, Tile)):
            continue
        comparable = (size_ratio(p_part.size, c_part.size) is not None
                      or size_ratio(c_part.size, p_part.size) is not None)
        # a producer that does not cover the dimension would leave some events without a notify
        complete = p_grid[p_part.axis] == ceil_div(dim, p_part.size)
        repeated = ("p", p_part.axis) in used or ("c", c_part.axis) in used
        if comparable and complete and not repeated:
            used |= {("p", p_part.axis), ("c", c_part.axis)}
            overlaps.append(Overlap(p_part.axis, p_part.size, c_part.axis, c_part.size))
    return frozenset(overlaps)


def _event_maps(hazard: _Hazard) -> tuple[IndexMap, IndexMap, tuple[Expr, ...]]:
    """Producer's map, consumer's map and shape of the event tensor for one hazard."""
    p_axes, c_axes = hazard.producer.function.axes, hazard.consumer.function.axes
    grid = dict(zip(p_axes, hazard.producer.tile_num, strict=True))
    p_indices: list[Expr] = []
    c_indices: list[Expr] = []
    shape: list[Expr] = []
    for overlap in sorted(hazard.ordering, key=lambda o: p_axes.index(o.p_axis)):
        p_per_event = size_ratio(overlap.c_size, overlap.p_size) or 1
        c_per_event = size_ratio(overlap.p_size, overlap.c_size) or 1
        p_indices.append(Symbol(overlap.p_axis) // p_per_event)
        c_indices.append(Symbol(overlap.c_axis) // c_per_event)
        shape.append(ceil_div(grid[overlap.p_axis], p_per_event))
    return (IndexMap(p_axes, tuple(p_indices)), IndexMap(c_axes, tuple(c_indices)), tuple(shape))
