"""Formats as GPU bodies see them: what a pointer points to, and what loads elements of weights.

Of single elements a body loads what it wants. A format of blocks has a loader, a `@triton.jit`
function `loader(rows, n, k, length, mask)` that returns elements [n, k] of rows of `length`
elements as float32 or as 16-bit floats. rows: pointer to the bytes of row 0; n, k, mask: tensors
that broadcast to the block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from typing import Any

import triton.language as tl

from event_tensor.errors import UserError
from persistent_runtime.formats import Format, format_of

_loaders: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Stored:
    """A format: element is what a pointer points to, bytes where blocks have several elements."""

    name: str
    element: tl.dtype
    block_elements: int
    block_bytes: int
    load: Any = field(default=None, compare=False)

    def __repr__(self) -> str:
        return self.name  # short: it becomes part of the names of compiled functions


def gpu_loader(of: Format) -> Callable[[Any], Any]:
    """Registers the decorated `@triton.jit` function as what loads a format's elements."""
    if of.is_elementwise:
        raise UserError(f"{of.name} has single elements, which bodies load by themselves")

    def register(loader: Any) -> Any:
        _loaders[of.name] = loader
        return loader

    return register


def stored(name: str) -> Stored:
    """Raises UserError for a format that the GPU cannot load."""
    found = format_of(name)
    if found.is_elementwise:
        return Stored(name, getattr(tl, name), 1, found.block_bytes)
    if name not in _loaders:
        raise UserError(f"format {name!r} has no GPU loader; decorate one with @gpu_loader from "
                        f"persistent_runtime.gpu.compile.stored")
    return Stored(name, tl.uint8, found.block_elements, found.block_bytes, _loaders[name])


@cache
def _record(names: tuple[str, ...]) -> Any:
    def short(self: Any) -> str:
        return "_".join(str(getattr(self, name)) for name in names)

    return make_dataclass("formats", names, frozen=True, repr=False,
                          namespace={"__repr__": short})


def operand_formats(names: Sequence[str], formats: Sequence[str]) -> Any:
    """A `Stored` for each operand, as fields by its name."""
    return _record(tuple(names))(*map(stored, formats))


def loaders_of(formats: Sequence[str]) -> list[Any]:
    """The loaders that bodies for these formats call."""
    return [found.load for found in map(stored, dict.fromkeys(formats)) if found.load]
