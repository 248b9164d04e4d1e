"""The control tensors: what host and device tell one another about a launch, in one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

from event_tensor.tensors import HostRead, Role, TensorSpec
from persistent_runtime.rows import layout

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes fixed when the decoder is compiled: they size memory, not code."""

    max_requests: int
    max_context: int
    max_steps_rows: int  # rows that one launch may process, all its steps together
    num_stop_ids: int


Dim = int | Callable[[Limits], int]


def tensor(*shape: Dim, dtype: str = "int32", role: Role = "control",
           host_reads: HostRead = "as written") -> Any:
    """A row of the table."""
    return field(metadata={"shape": shape, "spec": (dtype, role, host_reads)})


def rows(limits: Limits) -> int:
    return limits.max_steps_rows


def requests(limits: Limits) -> int:
    return limits.max_requests


def positions(limits: Limits) -> int:
    return limits.max_context


def stop_ids(limits: Limits) -> int:
    return limits.num_stop_ids


@dataclass(frozen=True, slots=True)
class Control(Generic[T]):
    """All control tensors. T: their declarations in a graph, their host arrays in a decoder."""

    # of the rows of all steps of a launch, one after the other
    row_request: T = tensor(rows)  # which request each belongs to
    row_position: T = tensor(rows)  # and which position it computes; decode steps move it
    logit_row: T = tensor(rows)  # of each answer: its row within its step
    # of each request: its text so far, and how it goes on
    token_ids: T = tensor(requests, positions)
    token_time: T = tensor(requests, positions, dtype="int64", host_reads="as a clock")
    token_logprob: T = tensor(requests, positions, dtype="float32")
    length: T = tensor(requests, host_reads="first")  # tokens that are there
    length_limit: T = tensor(requests)
    finished: T = tensor(requests)  # RUNNING or why it has ended, see layout.py
    # of each request: how its tokens are chosen, see layout.py
    sampling: T = tensor(requests, layout.SAMPLING_WORDS, dtype="float32")
    seed: T = tensor(requests, dtype="int64")
    processors: T = tensor(requests, layout.PROCESSORS_WORDS, role="input")
    # of all requests together
    stop_ids: T = tensor(stop_ids)  # the tokens that end them, -1 where there are fewer
    biases: T = tensor(layout.MAX_BIASES, layout.BIAS_WORDS, role="input")
    bias_prefixes: T = tensor(layout.MAX_PREFIX_TOKENS, role="input")

    def each(self, made_of: Callable[[T], Any]) -> Control[Any]:
        """The same table of what `made_of` makes of each entry."""
        return Control(*(made_of(getattr(self, row.name)) for row in fields(self)))


def declare(limits: Limits) -> Control[TensorSpec]:
    """The tensors of a decoder with these limits."""
    def spec(name: str, shape: tuple[Dim, ...], dtype: str, role: Role, host_reads: HostRead
             ) -> TensorSpec:
        sizes = tuple(dim if isinstance(dim, int) else dim(limits) for dim in shape)
        return TensorSpec(name, sizes, dtype, role, host_reads)

    return Control(*(spec(row.name, row.metadata["shape"], *row.metadata["spec"])
                     for row in fields(Control)))
