"""Edges between task coordinates and event coordinates: einsum strings, Python maps, triggers.

An edge's map is traced once into expressions, so it prints, substitutes and evaluates on a whole
grid at once. A map that reads a tensor (`topk_ids[i, k]`) makes the edge data-dependent: an
*update* on the producer's side. A `trigger` on the consumer's side names the tiles that an event
releases (paper section 2, data-dependent dynamism).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from event_tensor.errors import GraphError
from event_tensor.symbols import Expr, ExprLike, Symbol, as_expr
from event_tensor.tensors import EventTensor, TensorRead, TensorSpec


@dataclass(frozen=True, slots=True)
class IndexRange:
    """All indices in [start, stop)."""

    start: Expr
    stop: Expr

    def __repr__(self) -> str:
        return f"{self.start!r}:{self.stop!r}"


def span(start: ExprLike, stop: ExprLike) -> IndexRange:
    """A range of indices inside a map: `lambda i: span(4 * i, 4 * i + 4)`."""
    return IndexRange(as_expr(start), as_expr(stop))


Index: TypeAlias = Expr | IndexRange


@dataclass(frozen=True, slots=True)
class IndexMap:
    """Coordinates `axes` → one index (or range) per dimension of the target."""

    axes: tuple[str, ...]
    indices: tuple[Index, ...]

    def tensors_read(self) -> tuple[TensorSpec, ...]:
        """Tensors whose run-time values the map depends on, each once."""
        return tuple({read.tensor: None for read in self._reads()})

    def reads_of(self, tensor: TensorSpec) -> tuple[TensorRead, ...]:
        """Every place where the map reads `tensor`."""
        return tuple(read for read in self._reads() if read.tensor is tensor)

    def _reads(self) -> Iterator[TensorRead]:
        for index in self.indices:
            for expr in (index.start, index.stop) if isinstance(index, IndexRange) else (index,):
                yield from (node for node in expr.walk() if isinstance(node, TensorRead))

    def __repr__(self) -> str:
        return f"{', '.join(self.axes)} -> {', '.join(map(repr, self.indices)) or '()'}"


@dataclass(frozen=True, slots=True)
class Edge:
    """A notify (out edge) or a wait (in edge); `is_trigger` turns the map round: event → tiles."""

    event: EventTensor
    map: IndexMap
    is_trigger: bool = False

    @property
    def is_data_dependent(self) -> bool:
        return bool(self.map.tensors_read())


@dataclass(frozen=True, slots=True)
class Trigger:
    """Event coordinates → the tiles it releases along the consumer's leading axes."""

    function: Callable[..., Any]


def trigger(function: Callable[..., Any]) -> Trigger:
    """`in_edges={E: trigger(lambda e: span(indptr[e], indptr[e + 1]))}`: event e releases them."""
    return Trigger(function)


EdgeSpec: TypeAlias = "str | Callable[..., Any] | Trigger"


def trace_edge(event: EventTensor, spec: EdgeSpec, axes: tuple[str, ...], call: str) -> Edge:
    """The edge that `spec` describes for a call whose tile axes are `axes`.

    Raises GraphError when the spec does not fit the event's rank or the call's axes.
    """
    if isinstance(spec, Trigger):
        names = tuple(f"e{d}" if len(event.shape) > 1 else "e" for d in range(len(event.shape)))
        index_map = _trace(spec.function, names, call, event)
        if not 1 <= len(index_map.indices) <= len(axes):
            raise GraphError(
                f"trigger of {call} from {event.name} gives {len(index_map.indices)} tile indices; "
                f"the call has {len(axes)} tile axes")
        return Edge(event, index_map, is_trigger=True)
    index_map = _parse(spec, axes, call) if isinstance(spec, str) else _trace(
        spec, axes, call, event)
    if len(index_map.indices) != len(event.shape):
        raise GraphError(
            f"edge {call} – {event.name}: the map gives {len(index_map.indices)} indices and "
            f"{event!r} has {len(event.shape)} dimensions")
    return Edge(event, index_map)


def _parse(text: str, axes: tuple[str, ...], call: str) -> IndexMap:
    left, arrow, right = text.replace(" ", "").partition("->")
    if not arrow or len(left) != len(axes) or len(set(left)) != len(left):
        raise GraphError(
            f"edge {text!r} of {call}: write one letter for each of its {len(axes)} tile axes, "
            f"then '->', then letters of the event, for example 'ij->i'")
    unknown = [letter for letter in right if letter not in left]
    if unknown:
        raise GraphError(f"edge {text!r} of {call}: {unknown[0]!r} does not stand left of '->'")
    names = dict(zip(left, axes, strict=True))
    return IndexMap(axes, tuple(Symbol(names[letter]) for letter in right))


def _trace(function: Callable[..., Any], names: Sequence[str], call: str,
           event: EventTensor) -> IndexMap:
    try:
        result = function(*(Symbol(name) for name in names))
    except TypeError as error:
        raise GraphError(
            f"edge {call} – {event.name}: the map must take {len(names)} coordinates "
            f"({', '.join(names)}) and use only + - * // % on them: {error}") from None
    parts = result if isinstance(result, (tuple, list)) else (result,)
    return IndexMap(tuple(names),
                    tuple(p if isinstance(p, IndexRange) else as_expr(p) for p in parts))
