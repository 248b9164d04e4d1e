"""Which tiles of one call are ordered before which tiles of another, symbolically.

An ordering from call P to call C is a set of `Overlap`s. Tile p is ordered before tile c when,
for every overlap, the interval p covers along `p_axis` meets the interval c covers along `c_axis`
(both measured in elements of one common dimension). Fewer overlaps order more pairs; the empty
set orders every tile of P before every tile of C.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TypeAlias

from event_tensor.edges import Edge
from event_tensor.graph import Call
from event_tensor.symbols import Binary, Constant, Expr, Symbol, ceil_div, lower_bound
from event_tensor.tensors import EventTensor


@dataclass(frozen=True, slots=True)
class Overlap:
    """p covers [p * p_size, (p + 1) * p_size), c likewise."""

    p_axis: str
    p_size: Expr
    c_axis: str
    c_size: Expr

    @property
    def is_identity(self) -> bool:
        return self.p_size == self.c_size

    def normalised(self) -> Overlap:
        """The same relation in the smallest sizes, so that equal relations compare equal."""
        if self.is_identity:
            return Overlap(self.p_axis, Constant(1), self.c_axis, Constant(1))
        p, c = size_ratio(self.p_size, self.c_size), size_ratio(self.c_size, self.p_size)
        if p is not None:
            return Overlap(self.p_axis, Constant(p), self.c_axis, Constant(1))
        if c is not None:
            return Overlap(self.p_axis, Constant(1), self.c_axis, Constant(c))
        return self


Ordering: TypeAlias = frozenset[Overlap]


def size_ratio(large: Expr, small: Expr) -> int | None:
    """large / small where that is a whole number known without bindings."""
    if large == small:
        return 1
    if isinstance(large, Constant) and isinstance(small, Constant):
        return large.value // small.value if large.value % small.value == 0 else None
    if isinstance(large, Binary) and large.op == "*":
        if large.left == small and isinstance(large.right, Constant):
            return large.right.value
        if large.right == small and isinstance(large.left, Constant):
            return large.left.value
    return None


def compose(first: Ordering, second: Ordering) -> Ordering | None:
    """The ordering P → C that P → X → C guarantees, or None where this analysis sees none.

    Along an axis of X that only one side constrains, some tile of X always fits. Where both do,
    an identity on either side carries the other over. Otherwise both must measure X in the same
    intervals: any element that p and c share then lies in one tile of X, which orders the pair.
    All of this holds only where X has tiles for every p and c (`OrderingIndex` checks it).
    """
    by_axis: dict[str, list[Overlap]] = defaultdict(list)
    for overlap in second:
        by_axis[overlap.p_axis].append(overlap)
    result: set[Overlap] = set()
    seen: set[str] = set()
    for a in first:
        following = by_axis.get(a.c_axis, [])
        if a.c_axis in seen or len(following) > 1:
            return None
        seen.add(a.c_axis)
        for b in following:
            if a.is_identity:
                result.add(Overlap(a.p_axis, b.p_size, b.c_axis, b.c_size))
            elif b.is_identity:
                result.add(Overlap(a.p_axis, a.p_size, b.c_axis, a.c_size))
            elif a.c_size == b.p_size:
                result.add(Overlap(a.p_axis, a.p_size, b.c_axis, b.c_size))
            else:
                return None
    return frozenset(result)


def meets_everywhere(tiles: Expr, size: Expr, other_tiles: Expr, other_size: Expr) -> bool:
    """Whether each of `tiles` intervals of `size` meets one of `other_tiles` of `other_size`."""
    if isinstance(tiles, Constant) and isinstance(other_tiles, Constant) and (
            isinstance(size, Constant) and isinstance(other_size, Constant)):
        return (tiles.value - 1) * size.value < other_tiles.value * other_size.value
    coarser = size_ratio(other_size, size)
    if coarser is not None:
        return other_tiles == ceil_div(tiles, coarser)
    finer = size_ratio(size, other_size)
    return finer is not None and tiles == ceil_div(other_tiles, finer)


def implies(known: Ordering, wanted: Ordering) -> bool:
    """Whether `known` orders every pair of tiles that `wanted` does."""
    have = {overlap.normalised() for overlap in wanted}
    return all(overlap.normalised() in have for overlap in known)


class OrderingIndex:
    """The orderings that the edges of the calls seen so far guarantee.

    Layers repeat the same shapes, so compositions are remembered by shape, not by call.
    """

    def __init__(self) -> None:
        self._shapes: dict[tuple[tuple[str, ...], tuple[Expr, ...]], int] = {}
        self._shape_of: dict[int, int] = {}
        self._grids: list[dict[str, Expr]] = []
        self._ids: dict[Ordering, int] = {}
        self._orderings: list[Ordering] = []
        self._conditional: set[int] = set()  # calls of which some tiles may not run
        self._behind_choice: dict[int, set[int]] = defaultdict(set)
        self._earlier: dict[int, set[int]] = defaultdict(set)
        self._notifiers: dict[EventTensor, list[tuple[int, Edge]]] = defaultdict(list)
        self._direct: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._composed: dict[tuple[int, int, int, int, int], int | None] = {}
        self._implied: dict[tuple[int, int], bool] = {}

    def add_call(self, call: Call) -> None:
        """Take the call's written edges into account; producers come before consumers."""
        shape = (call.function.axes, call.tile_num)
        if shape not in self._shapes:
            self._shapes[shape] = len(self._grids)
            self._grids.append(dict(zip(*shape, strict=True)))
        self._shape_of[call.index] = self._shapes[shape]
        if call.is_triggered:
            self._conditional.add(call.index)
        for edge in call.in_edges:
            for producer, out_edge in self._notifiers[edge.event]:
                chosen = edge.is_data_dependent or out_edge.is_data_dependent
                self._connect(producer, call.index, chosen)
                if producer in self._conditional and not chosen:
                    self._conditional.add(call.index)
                ordering = edge_ordering(out_edge, edge)
                if ordering is not None:
                    self.add(producer, call.index, ordering)
        for edge in call.out_edges:
            self._notifiers[edge.event].append((call.index, edge))

    def _connect(self, producer: int, consumer: int, chosen: bool) -> None:
        self._earlier[consumer] |= self._earlier[producer] | {producer}
        self._behind_choice[consumer] |= self._behind_choice[producer]
        if chosen:
            self._behind_choice[consumer] |= self._earlier[producer] | {producer}

    def is_behind_choice(self, producer: int, consumer: int) -> bool:
        """Whether a chain from producer to consumer has a data-dependent edge: which tiles it
        orders is decided at run time."""
        return producer in self._behind_choice[consumer]

    def add(self, producer: int, consumer: int, ordering: Ordering) -> None:
        self._connect(producer, consumer, False)
        self._direct[consumer].append((producer, self._id(ordering)))

    def is_implied(self, producer: int, consumer: int, wanted: Ordering) -> bool:
        """Whether a chain of known edges orders all the pairs in `wanted`."""
        wanted_id = self._id(wanted)
        frontier = list(self._direct[consumer])
        seen = set(frontier)
        while frontier:
            middle, ordering = frontier.pop()
            if middle == producer:
                if self._implies(ordering, wanted_id):
                    return True
                continue
            if middle in self._conditional:  # the tile between them may not run
                continue
            for earlier, first in self._direct[middle]:
                if earlier < producer:
                    continue
                composed = self._compose(earlier, middle, consumer, first, ordering)
                if composed is not None and (earlier, composed) not in seen:
                    seen.add((earlier, composed))
                    frontier.append((earlier, composed))
        return False

    def _id(self, ordering: Ordering) -> int:
        if ordering not in self._ids:
            self._ids[ordering] = len(self._orderings)
            self._orderings.append(ordering)
        return self._ids[ordering]

    def _implies(self, known: int, wanted: int) -> bool:
        key = (known, wanted)
        if key not in self._implied:
            self._implied[key] = implies(self._orderings[known], self._orderings[wanted])
        return self._implied[key]

    def _compose(self, producer: int, middle: int, consumer: int, first: int, second: int
                 ) -> int | None:
        shapes = (self._shape_of[producer], self._shape_of[middle], self._shape_of[consumer])
        key = (*shapes, first, second)
        if key not in self._composed:
            before, after = self._orderings[first], self._orderings[second]
            composed = compose(before, after)
            if composed is not None and not self._has_tiles_for_all(shapes, before, after):
                composed = None
            self._composed[key] = None if composed is None else self._id(composed)
        return self._composed[key]

    def _has_tiles_for_all(self, shapes: tuple[int, int, int], first: Ordering, second: Ordering
                           ) -> bool:
        """Whether every tile of the producer and of the consumer finds its tile in between."""
        p, x, c = (self._grids[shape] for shape in shapes)
        constrained = {a.c_axis for a in first} | {b.p_axis for b in second}
        return (
            all(lower_bound(x[axis]) >= 1 for axis in x if axis not in constrained)
            and all(meets_everywhere(p[a.p_axis], a.p_size, x[a.c_axis], a.c_size) for a in first)
            and all(meets_everywhere(c[b.c_axis], b.c_size, x[b.p_axis], b.p_size) for b in second))


def edge_ordering(out_edge: Edge, in_edge: Edge) -> Ordering | None:
    """The ordering between a notifying and a waiting call, None where the maps are too general."""
    if in_edge.is_trigger:
        return None
    overlaps: set[Overlap] = set()
    for p_index, c_index in zip(out_edge.map.indices, in_edge.map.indices, strict=True):
        p, c = _axis_and_divisor(p_index), _axis_and_divisor(c_index)
        if p is None or c is None or (p[1] != 1 and c[1] != 1):
            return None
        # p // a == c // b: tile p has size 1 / a of the event, so sizes are b and a
        overlaps.add(Overlap(p[0], Constant(c[1]), c[0], Constant(p[1])))
    return frozenset(overlaps)


def _axis_and_divisor(index: object) -> tuple[str, int] | None:
    if isinstance(index, Symbol):
        return index.name, 1
    if (isinstance(index, Binary) and index.op == "//" and isinstance(index.left, Symbol)
            and isinstance(index.right, Constant)):
        return index.left.name, index.right.value
    return None
