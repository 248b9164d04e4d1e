"""Data tensors and event tensors: names, symbolic shapes, and nothing that holds data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from event_tensor.errors import GraphError
from event_tensor.symbols import Expr, ExprLike, as_expr

# control: host and workers both write it; input: the host writes it before a launch
Role = Literal["weight", "activation", "kv_cache", "control", "input"]
# what the host must know of a control tensor that it reads while workers write it. first: it says
# how far the others have come, so they are read after it; as a clock: it holds times of the
# workers' own clock, in nanoseconds, 0 where there is none yet, and no host ever writes it
HostRead = Literal["as written", "first", "as a clock"]


class _Marker:
    """A named constant that is neither a number nor None."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name

    def __reduce__(self) -> str:
        return self._name  # the one of this module: markers are told apart by identity


INFERRED = _Marker("INFERRED")  # the wait count is the number of notifies the edges imply
RUNTIME = _Marker("RUNTIME")  # the wait count is written on the device by a task


@dataclass(frozen=True, slots=True, eq=False)
class TensorSpec:
    """A data tensor: its name, symbolic shape, element type and role, and how the host reads it
    where it does. Identity is the object."""

    name: str
    shape: tuple[Expr, ...]
    dtype: str
    role: Role = "activation"
    host_reads: HostRead = "as written"

    def __init__(self, name: str, shape: tuple[ExprLike, ...], dtype: str = "float32",
                 role: Role = "activation", host_reads: HostRead = "as written") -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "shape", tuple(as_expr(d) for d in shape))
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "host_reads", host_reads)

    def __getitem__(self, index: ExprLike | tuple[ExprLike, ...]) -> TensorRead:
        """A read inside an edge's map, which makes it data-dependent: one element or, with fewer
        indices than dimensions, the set of entries that are left, negative ones meaning none."""
        indices = index if isinstance(index, tuple) else (index,)
        return TensorRead(self, tuple(as_expr(i) for i in indices))

    def __repr__(self) -> str:
        dims = ", ".join(map(repr, self.shape))
        return f"{self.name}: {self.dtype}[{dims}]"


@dataclass(frozen=True, slots=True, repr=False)
class TensorRead(Expr):
    """The value of a tensor's element, known only on the device (paper: data-dependent edges)."""

    tensor: TensorSpec
    indices: tuple[Expr, ...]

    def evaluate(self, bindings: Any) -> Any:
        if self.tensor.name not in bindings:
            raise GraphError(
                f"the edge reads tensor {self.tensor.name!r}, whose values exist only at run time; "
                f"give sample values, for example runtime={{{self.tensor.name!r}: array}}")
        return bindings[self.tensor.name][tuple(i.evaluate(bindings) for i in self.indices)]

    @property
    def is_partial(self) -> bool:
        """Fewer indices than dimensions: the set of entries there, negative ones left out."""
        return len(self.indices) < len(self.tensor.shape)

    def substitute(self, replacements: Any) -> Expr:
        return TensorRead(self.tensor, tuple(i.substitute(replacements) for i in self.indices))

    def walk(self) -> Any:
        yield self
        for index in self.indices:
            yield from index.walk()

    def __repr__(self) -> str:
        return f"{self.tensor.name}[{', '.join(map(repr, self.indices))}]"


@dataclass(frozen=True, slots=True, eq=False)
class EventTensor:
    """A tensor of events: each is the completion of a set of tasks (paper section 2).

    `wait_count` is INFERRED, an expression, or RUNTIME with `count_from` naming the tensor that
    holds one count per event. `stands_for`: the event tensor of which this one event is the
    conservative form (conservative.py).
    """

    shape: tuple[Expr, ...]
    wait_count: Expr | _Marker
    name: str
    count_from: TensorSpec | None
    stands_for: EventTensor | None

    def __init__(self, shape: tuple[ExprLike, ...] = (), wait_count: ExprLike | _Marker = INFERRED,
                 name: str = "E", count_from: TensorSpec | None = None,
                 stands_for: EventTensor | None = None) -> None:
        object.__setattr__(self, "shape", tuple(as_expr(d) for d in shape))
        object.__setattr__(self, "wait_count",
                           wait_count if isinstance(wait_count, _Marker) else as_expr(wait_count))
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "count_from", count_from)
        object.__setattr__(self, "stands_for", stands_for)

    def __repr__(self) -> str:
        dims = ", ".join(map(repr, self.shape))
        return f"{self.name}[{dims}]"

