"""Integer expressions over symbols: the sizes and coordinates of graphs.

Expressions are immutable and hashable, print as they are written, and evaluate on ints and on
numpy arrays alike, so one graph serves every shape and a whole grid of tasks is mapped at once.

>>> n = Symbol("n")
>>> e = ceil_div(n + 3, 4) * 2
>>> e
ceil_div(n + 3, 4) * 2
>>> e.evaluate({"n": 6})
6
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from event_tensor.errors import GraphError

Value: TypeAlias = "int | np.ndarray[Any, Any]"
Bindings: TypeAlias = Mapping[str, Any]
ExprLike: TypeAlias = "Expr | int"


def _floor_ceil_div(a: Any, b: Any) -> Any:
    return -(-a // b)


@dataclass(frozen=True, slots=True)
class _Operator:
    apply: Callable[[Any, Any], Any]
    precedence: int  # 0 prints as a function call
    text: str


_OPERATORS: dict[str, _Operator] = {
    "+": _Operator(operator.add, 1, "+"),
    "-": _Operator(operator.sub, 1, "-"),
    "*": _Operator(operator.mul, 2, "*"),
    "//": _Operator(operator.floordiv, 2, "//"),
    "%": _Operator(operator.mod, 2, "%"),
    "min": _Operator(np.minimum, 0, "min"),
    "max": _Operator(np.maximum, 0, "max"),
    "ceil_div": _Operator(_floor_ceil_div, 0, "ceil_div"),
}


class Expr:
    """An integer expression; build it from `Symbol`s with +, -, *, // and %, `minimum`, …"""

    __slots__ = ()

    def evaluate(self, bindings: Bindings) -> Any:
        """The value under `bindings` (symbol name → int or array).

        Raises GraphError naming the symbol that is not bound.
        """
        raise NotImplementedError

    def substitute(self, replacements: Mapping[str, ExprLike]) -> Expr:
        """The same expression with symbols replaced by expressions."""
        raise NotImplementedError

    def symbols(self) -> frozenset[str]:
        """Names of the symbols the expression depends on."""
        return frozenset(node.name for node in self.walk() if isinstance(node, Symbol))

    def walk(self) -> Iterator[Expr]:
        """This node and all below it."""
        yield self

    def __add__(self, other: ExprLike) -> Expr:
        return _binary("+", self, other)

    def __radd__(self, other: ExprLike) -> Expr:
        return _binary("+", other, self)

    def __sub__(self, other: ExprLike) -> Expr:
        return _binary("-", self, other)

    def __rsub__(self, other: ExprLike) -> Expr:
        return _binary("-", other, self)

    def __mul__(self, other: ExprLike) -> Expr:
        return _binary("*", self, other)

    def __rmul__(self, other: ExprLike) -> Expr:
        return _binary("*", other, self)

    def __floordiv__(self, other: ExprLike) -> Expr:
        return _binary("//", self, other)

    def __rfloordiv__(self, other: ExprLike) -> Expr:
        return _binary("//", other, self)

    def __mod__(self, other: ExprLike) -> Expr:
        return _binary("%", self, other)

    def __rmod__(self, other: ExprLike) -> Expr:
        return _binary("%", other, self)


@dataclass(frozen=True, slots=True, repr=False)
class Constant(Expr):
    value: int

    def evaluate(self, bindings: Bindings) -> int:
        return self.value

    def substitute(self, replacements: Mapping[str, ExprLike]) -> Expr:
        return self

    def __repr__(self) -> str:
        return str(self.value)


@dataclass(frozen=True, slots=True, repr=False)
class Symbol(Expr):
    """A size known only when the graph is instantiated, or a tile coordinate.

    `at_least` is the smallest value it may be bound to; analyses rely on it.
    """

    name: str
    at_least: int = 1

    def evaluate(self, bindings: Bindings) -> Any:
        try:
            return bindings[self.name]
        except KeyError:
            raise GraphError(
                f"symbol {self.name!r} has no value; bind it, for example {{{self.name!r}: 1}}"
            ) from None

    def substitute(self, replacements: Mapping[str, ExprLike]) -> Expr:
        return as_expr(replacements[self.name]) if self.name in replacements else self

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, repr=False)
class Binary(Expr):
    op: str
    left: Expr
    right: Expr

    def evaluate(self, bindings: Bindings) -> Any:
        value = _OPERATORS[self.op].apply(self.left.evaluate(bindings),
                                          self.right.evaluate(bindings))
        return int(value) if isinstance(value, np.integer) else value

    def substitute(self, replacements: Mapping[str, ExprLike]) -> Expr:
        return _binary(self.op, self.left.substitute(replacements),
                       self.right.substitute(replacements))

    def walk(self) -> Iterator[Expr]:
        yield self
        yield from self.left.walk()
        yield from self.right.walk()

    def __repr__(self) -> str:
        op = _OPERATORS[self.op]
        if op.precedence == 0:
            return f"{op.text}({self.left!r}, {self.right!r})"
        left, right = repr(self.left), repr(self.right)
        if _precedence(self.left) < op.precedence:
            left = f"({left})"
        # a - (b - c) and a // (b * c) need their brackets
        if _precedence(self.right) <= op.precedence and not (
            self.op == _op_of(self.right) and self.op in "+*"
        ):
            right = f"({right})"
        return f"{left} {op.text} {right}"


def _op_of(expr: Expr) -> str:
    return expr.op if isinstance(expr, Binary) else ""


def _precedence(expr: Expr) -> int:
    if isinstance(expr, Binary) and _OPERATORS[expr.op].precedence:
        return _OPERATORS[expr.op].precedence
    return 9


def as_expr(value: ExprLike) -> Expr:
    """An int or an expression as an expression."""
    if isinstance(value, Expr):
        return value
    return Constant(int(value))


_IDENTITIES = {("+", 0), ("-", 0), ("*", 1), ("//", 1), ("ceil_div", 1)}  # x op number is x


def _binary(op: str, left: ExprLike, right: ExprLike) -> Expr:
    a, b = as_expr(left), as_expr(right)
    if isinstance(a, Constant) and isinstance(b, Constant):
        if op in ("//", "%", "ceil_div") and b.value == 0:
            raise GraphError(f"{a!r} {op} 0: division by zero in a size")
        return Constant(int(_OPERATORS[op].apply(a.value, b.value)))
    if isinstance(b, Constant) and (op, b.value) in _IDENTITIES:
        return a
    if isinstance(a, Constant) and (op, a.value) in (("+", 0), ("*", 1)):
        return b
    if op == "%" and b == Constant(1):
        return Constant(0)
    if op in ("min", "max") and a == b:
        return a
    if op in ("//", "ceil_div") and isinstance(b, Constant) and b.value > 0:
        factor, rest = _constant_factor(a)
        if factor % b.value == 0:
            return _binary("*", rest, factor // b.value)
        if isinstance(a, Binary) and a.op == op and isinstance(a.right, Constant):
            return _binary(op, a.left, a.right.value * b.value)
    return Binary(op, a, b)


def _constant_factor(expr: Expr) -> tuple[int, Expr]:
    """expr as (constant, rest) with expr = constant * rest."""
    if isinstance(expr, Binary) and expr.op == "*":
        if isinstance(expr.right, Constant):
            return expr.right.value, expr.left
        if isinstance(expr.left, Constant):
            return expr.left.value, expr.right
    return 1, expr


def lower_bound(expr: Expr) -> float:
    """A value that `expr` never falls below; -inf where this analysis sees none."""
    if isinstance(expr, Constant):
        return expr.value
    if isinstance(expr, Symbol):
        return expr.at_least
    if not isinstance(expr, Binary):
        return -math.inf
    left, right = lower_bound(expr.left), lower_bound(expr.right)
    if expr.op == "+":
        return left + right
    if expr.op == "*" and left >= 0 and right >= 0:
        return left * right
    if expr.op == "max":
        return max(left, right)
    if expr.op == "min":
        return min(left, right)
    if expr.op in ("//", "ceil_div") and left >= 0 and right >= 1:
        by_constant = isinstance(expr.right, Constant)
        return float(_OPERATORS[expr.op].apply(left, right)) if by_constant else 0
    return 0 if expr.op == "%" and right >= 1 else -math.inf


def minimum(left: ExprLike, right: ExprLike) -> Expr:
    return _binary("min", left, right)


def maximum(left: ExprLike, right: ExprLike) -> Expr:
    return _binary("max", left, right)


def ceil_div(left: ExprLike, right: ExprLike) -> Expr:
    """left / right, rounded up."""
    return _binary("ceil_div", left, right)
