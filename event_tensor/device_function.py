"""Device functions: what one tile program reads, writes and costs. Bodies live with the backends.

A region has one entry per dimension of its operand:

- `Tile(axis, size)`: elements `[axis * size, (axis + 1) * size)`, cut at the dimension's end;
- `WHOLE`: the whole dimension;
- `Span(start, length)`: any other box, in expressions of the tile coordinates;
- `Indexed(by, tile)`: the places that the control tensor operand `by` names at run time;
- `Rows(by, axes)`: exactly the places that operand `by` names at these tile coordinates.

Sizes may name the function's parameters, which every call binds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from event_tensor.symbols import Constant, Expr, ExprLike, as_expr

Access = Literal["read", "write", "update"]


@dataclass(frozen=True, slots=True)
class Tile:
    axis: str
    size: Expr

    def __init__(self, axis: str, size: ExprLike = 1) -> None:
        object.__setattr__(self, "axis", axis)
        object.__setattr__(self, "size", as_expr(size))

    def __repr__(self) -> str:
        return f"{self.axis}:{self.size!r}"


@dataclass(frozen=True, slots=True)
class Whole:
    def __repr__(self) -> str:
        return ":"


@dataclass(frozen=True, slots=True)
class Span:
    start: Expr
    length: Expr

    def __init__(self, start: ExprLike, length: ExprLike) -> None:
        object.__setattr__(self, "start", as_expr(start))
        object.__setattr__(self, "length", as_expr(length))

    def __repr__(self) -> str:
        return f"{self.start!r} + [0, {self.length!r})"


@dataclass(frozen=True, slots=True)
class Indexed:
    """Places read from operand `by`. `distinct` is the caller's promise that the entries of
    different tiles along `axis` name different places, so the tiles may write at once."""

    by: str
    axis: str | None = None
    distinct: bool = False

    def __repr__(self) -> str:
        return f"{self.by}[{self.axis or ':'}]{' distinct' if self.distinct else ''}"


@dataclass(frozen=True, slots=True)
class Rows:
    """Exactly the places that operand `by` names at `[axes]`: one, or with fewer axes than the
    operand has dimensions a set, negative entries left out."""

    by: str
    axes: tuple[str, ...]

    def __repr__(self) -> str:
        return f"{self.by}[{', '.join(self.axes)}]"


Region: TypeAlias = Tile | Whole | Span | Indexed | Rows
WHOLE = Whole()


@dataclass(frozen=True, slots=True)
class Operand:
    name: str
    access: Access
    region: tuple[Region, ...]
    optional: bool = False

    @property
    def reads(self) -> bool:
        return self.access != "write"

    @property
    def writes(self) -> bool:
        return self.access != "read"


def reads(name: str, *region: Region, optional: bool = False) -> Operand:
    """An operand the tile only reads; an optional one may be None in a call."""
    return Operand(name, "read", region, optional)


def writes(name: str, *region: Region) -> Operand:
    """An operand the tile overwrites."""
    return Operand(name, "write", region)


def updates(name: str, *region: Region) -> Operand:
    """An operand the tile reads and writes in place."""
    return Operand(name, "update", region)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one tile moves and computes, in bytes and floating-point operations."""

    bytes: Expr = field(default_factory=lambda: Constant(0))
    flops: Expr = field(default_factory=lambda: Constant(0))


@dataclass(frozen=True, slots=True)
class DeviceFunction:
    """The declaration of one tile program.

    `axes` name the tile coordinates in order; `parameters` are the integers or floats a call
    binds, and `neutral` has values for those it may leave out; `scratch_bytes` is private memory
    one running tile needs.
    """

    name: str
    axes: tuple[str, ...]
    operands: tuple[Operand, ...]
    parameters: tuple[str, ...] = ()
    cost: Cost = field(default_factory=Cost)
    scratch_bytes: Expr = field(default_factory=lambda: Constant(0))
    neutral: Mapping[str, int | float] = field(default_factory=dict, hash=False)

    def operand(self, name: str) -> Operand:
        return next(operand for operand in self.operands if operand.name == name)
