"""Graphs of device-function calls over data tensors and event tensors (paper section 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from event_tensor.device_function import (
    DeviceFunction,
    Indexed,
    Operand,
    Region,
    Rows,
    Span,
    Tile,
)
from event_tensor.edges import Edge, EdgeSpec, trace_edge
from event_tensor.errors import GraphError
from event_tensor.symbols import Constant, Expr, ExprLike, as_expr, ceil_div, lower_bound
from event_tensor.tensors import EventTensor, TensorSpec


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a device function over a grid of tiles."""

    index: int
    name: str
    function: DeviceFunction
    tile_num: tuple[Expr, ...]
    args: tuple[TensorSpec | None, ...]
    parameters: Mapping[str, Expr | float]
    in_edges: tuple[Edge, ...]
    out_edges: tuple[Edge, ...]

    @property
    def sizes(self) -> dict[str, Expr]:
        """The parameters that are sizes, to replace symbols in regions and costs."""
        return {k: v for k, v in self.parameters.items() if isinstance(v, Expr)}

    @property
    def is_triggered(self) -> bool:
        """Whether events release the tiles, so that some may never run."""
        return any(edge.is_trigger for edge in self.in_edges)

    def accesses(self) -> list[tuple[Operand, TensorSpec]]:
        """Every operand that is present, with its tensor."""
        return [(operand, tensor)
                for operand, tensor in zip(self.function.operands, self.args, strict=True)
                if tensor is not None]

    def operand_tensor(self, name: str) -> TensorSpec:
        """The tensor bound to an operand. Raises GraphError where there is none."""
        for operand, tensor in self.accesses():
            if operand.name == name:
                return tensor
        raise GraphError(f"{self.name}: its regions name operand {name!r}, which is not bound; "
                         f"pass a tensor for it")

    def region(self, operand: Operand) -> tuple[Region, ...]:
        """The operand's region with this call's parameters put in."""
        return tuple(_bind_region(part, self.sizes) for part in operand.region)


def _bind_region(part: Region, sizes: Mapping[str, Expr]) -> Region:
    if isinstance(part, Tile):
        return Tile(part.axis, part.size.substitute(sizes))
    if isinstance(part, Span):
        return Span(part.start.substitute(sizes), part.length.substitute(sizes))
    return part


class Graph:
    """An append-only list of calls in program order; passes return new graphs.

    >>> from event_tensor.device_function import Tile, reads, writes
    >>> from event_tensor.symbols import Symbol
    >>> double = DeviceFunction("double", ("i",), (reads("x", Tile("i", 4)),
    ...                                            writes("y", Tile("i", 4))))
    >>> n = Symbol("n")
    >>> graph = Graph("example")
    >>> call = graph.call_device(double, args=[TensorSpec("x", (n,)), TensorSpec("y", (n,))])
    >>> call.tile_num
    (ceil_div(n, 4),)
    """

    def __init__(self, name: str, calls: Sequence[Call] = (),
                 original: Graph | None = None) -> None:
        """`original`: the graph whose conservative form this is; otherwise the graph itself."""
        self.name = name
        self.original: Graph = original or self
        self._calls = list(calls)

    @property
    def calls(self) -> tuple[Call, ...]:
        return tuple(self._calls)

    def call_device(
        self,
        function: DeviceFunction,
        *,
        args: Sequence[TensorSpec | None],
        tile_num: Sequence[ExprLike] | None = None,
        parameters: Mapping[str, ExprLike | float] | None = None,
        in_edges: Mapping[EventTensor, EdgeSpec] | None = None,
        out_edges: Mapping[EventTensor, EdgeSpec] | None = None,
        name: str | None = None,
    ) -> Call:
        """Append a call and return it.

        `tile_num` may be left out where every axis tiles a dimension of some operand. Edges may
        be left out; `derive_events` then makes them from the regions. Raises GraphError when the
        operands, parameters or edges do not fit the declaration.
        """
        label = self._fresh_name(name or function.name)
        bound = _bind_parameters(function, parameters or {}, label)
        _check_args(function, args, label)
        sizes = {k: v for k, v in bound.items() if isinstance(v, Expr)}
        grid = (_infer_tile_num(function, args, sizes, label) if tile_num is None
                else tuple(as_expr(count) for count in tile_num))
        if len(grid) != len(function.axes):
            raise GraphError(f"{label}: tile_num has {len(grid)} entries, {function.name} has the "
                             f"{len(function.axes)} tile axes {', '.join(function.axes)}")
        call = Call(
            len(self._calls), label, function, grid, tuple(args), bound,
            tuple(trace_edge(e, spec, function.axes, label)
                  for e, spec in (in_edges or {}).items()),
            tuple(trace_edge(e, spec, function.axes, label)
                  for e, spec in (out_edges or {}).items()))
        if any(edge.is_trigger for edge in call.out_edges):
            raise GraphError(f"{label}: a trigger belongs to the consumer's in_edges")
        self._calls.append(call)
        return call

    def tensors(self) -> tuple[TensorSpec, ...]:
        """Every data tensor, in order of first use."""
        seen = {t: None for call in self._calls for t in call.args if t is not None}
        return tuple(seen)

    def events(self) -> tuple[EventTensor, ...]:
        """Every event tensor, in order of first use."""
        seen = {edge.event: None for call in self._calls
                for edge in (*call.in_edges, *call.out_edges)}
        return tuple(seen)

    def symbols(self) -> tuple[str, ...]:
        """Names of the sizes to bind, sorted."""
        exprs: list[Expr] = [n for call in self._calls for n in call.tile_num]
        exprs += [v for call in self._calls for v in call.sizes.values()]
        exprs += [d for t in self.tensors() for d in t.shape]
        return tuple(sorted(set().union(*(e.symbols() for e in exprs)))) if exprs else ()

    def _fresh_name(self, name: str) -> str:
        taken = {call.name for call in self._calls}
        if name not in taken:
            return name
        return next(f"{name}_{k}" for k in range(1, len(taken) + 2) if f"{name}_{k}" not in taken)


def _bind_parameters(function: DeviceFunction, given: Mapping[str, Any],
                     label: str) -> dict[str, Expr | float]:
    given = {**function.neutral, **given}
    missing = [p for p in function.parameters if p not in given]
    unknown = [p for p in given if p not in function.parameters]
    if missing or unknown:
        raise GraphError(
            f"{label}: " + (f"parameter {missing[0]!r} of {function.name} is missing" if missing
                            else f"{function.name} has no parameter {unknown[0]!r}"))
    return {p: given[p] if isinstance(given[p], float) else as_expr(given[p])
            for p in function.parameters}


def _check_args(function: DeviceFunction, args: Sequence[TensorSpec | None], label: str) -> None:
    if len(args) != len(function.operands):
        raise GraphError(
            f"{label}: {len(args)} args for the {len(function.operands)} operands of "
            f"{function.name} ({', '.join(o.name for o in function.operands)})")
    for operand, tensor in zip(function.operands, args, strict=True):
        if tensor is None and not operand.optional:
            raise GraphError(f"{label}: operand {operand.name!r} of {function.name} is required")
        if tensor is not None and len(tensor.shape) != len(operand.region):
            raise GraphError(
                f"{label}: {tensor!r} has {len(tensor.shape)} dimensions, operand "
                f"{operand.name!r} of {function.name} describes {len(operand.region)}")


def _infer_tile_num(function: DeviceFunction, args: Sequence[TensorSpec | None],
                    sizes: Mapping[str, Expr], label: str) -> tuple[Expr, ...]:
    counts: dict[str, Expr] = {}
    for operand, tensor in zip(function.operands, args, strict=True):
        for part, dim in zip(operand.region, tensor.shape if tensor else (), strict=False):
            if isinstance(part, Tile):
                counts.setdefault(part.axis, ceil_div(dim, part.size.substitute(sizes)))
    missing = [axis for axis in function.axes if axis not in counts]
    if missing:
        raise GraphError(f"{label}: no operand tiles axis {missing[0]!r}; give tile_num")
    return tuple(counts[axis] for axis in function.axes)


def covers(call: Call, operand: Operand, tensor: TensorSpec) -> bool:
    """Whether the tiles of the call together access every element of the tensor."""
    if call.is_triggered:
        return False
    grid = dict(zip(call.function.axes, call.tile_num, strict=True))
    axes: list[str] = []
    for part, dim in zip(call.region(operand), tensor.shape, strict=True):
        if isinstance(part, Tile):
            axes.append(part.axis)
            if grid[part.axis] != ceil_div(dim, part.size):
                return False
        elif isinstance(part, Span):
            if not (part.start == Constant(0) and part.length == dim):
                return False
        elif isinstance(part, (Indexed, Rows)):
            return False
    # an axis that tiles no dimension may be empty; the call then has no tasks
    return len(set(axes)) == len(axes) and all(
        lower_bound(tiles) >= 1 for axis, tiles in grid.items() if axis not in axes)
