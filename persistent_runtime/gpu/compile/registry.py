"""Device-function bodies of the GPU, and the block sizes each is compiled with.

A body is a `@triton.jit` function `body(arguments, tile, step, CONFIG)`: a pointer to the argument
record (int64), tuples of the tile's coordinates and of the step record's words, and a constexpr
configuration. What a configuration holds is the body's own affair: the `configure` function given
beside it makes one from the `Shape` of the calls.

Make a body a call, `@triton.jit(noinline=True)`. Inlined, what it makes of its thread's number
alone, such as every address in shared memory, would be taken out of the worker's loop, into
registers that no other body could have; loops keep their loads in flight in a call as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from event_tensor.device_function import DeviceFunction
from event_tensor.errors import UserError
from event_tensor.graph import Call
from event_tensor.symbols import Expr, as_expr
from persistent_runtime.body_table import BodyTable
from persistent_runtime.cache.sources import GPU, compiled_sources
from persistent_runtime.function_table import FunctionTable, Variant
from persistent_runtime.gpu.compile.stored import loaders_of, operand_formats
from persistent_runtime.gpu.target import TILE_TARGETS, TileTarget


@dataclass(frozen=True, slots=True)
class Shape:
    """What a configuration may depend on: the calls of one device function in a graph whose
    operands have the same formats. formats: a `Stored` for each operand, by its name."""

    calls: tuple[Call, ...]
    formats: Any
    interpreted: bool
    target: TileTarget

    def parameter(self, name: str) -> list[int]:
        """The values that calls give to an integer parameter, without those known only later."""
        values = [call.parameters[name] for call in self.calls]
        return sorted({int(v.evaluate({})) for v in values
                       if isinstance(v, Expr) and not v.symbols()})

    def constant(self, name: str, absent: float) -> float:
        """The value that all calls give to a parameter; `absent` where the function has none.

        What is compiled for one value costs nothing where that is neutral. Raises UserError where
        calls differ.
        """
        values = {value if isinstance(value, float) else as_expr(value).evaluate({})
                  for call in self.calls
                  for value in [call.parameters.get(name, call.function.neutral.get(name, absent))]}
        if len(values) > 1:
            raise UserError(
                f"calls of {self.calls[0].function.name} give {name} the values "
                f"{', '.join(map(str, sorted(values)))}, but the GPU's kernel has one for all; "
                "declare a device function of its own for the others")
        return float(values.pop())

    def is_bound(self, part: str) -> bool:
        """Whether any call binds an optional operand whose name contains `part`."""
        return any(part in operand.name and tensor is not None for call in self.calls
                   for operand, tensor in zip(call.function.operands, call.args, strict=True))

    @staticmethod
    def largest_divisor(lengths: Sequence[int], limit: int) -> int:
        """The largest power of two up to `limit` that wastes nothing of the given lengths, but
        at least an eighth of `limit`: below, masked lanes cost less than short loads."""
        size = limit
        while size > max(limit // 8, 1) and any(length % size for length in lengths):
            size //= 2
        return size


@dataclass(frozen=True, slots=True)
class RegisteredBody:
    function: Any  # @triton.jit
    configure: Callable[[Shape], Any]


_bodies: BodyTable[RegisteredBody] = BodyTable(
    "GPU", f"{__name__}.gpu_body", [f"persistent_runtime.gpu.bodies.{name}"
                                    for name in ("attention", "linear", "experts", "tokens")])


def gpu_body(declaration: DeviceFunction, configure: Callable[[Shape], Any] = lambda shape: shape
             ) -> Callable[[Any], Any]:
    """Registers the decorated `@triton.jit` function as the GPU body of a device function.

    configure: Shape → the configuration the body gets, any hashable value with a stable repr.
    """

    def register(function: Any) -> Any:
        source = function.fn.__module__, function.fn.__qualname__
        _bodies.add(declaration, RegisteredBody(function, configure), source)
        return function

    return register


def body_of(declaration: DeviceFunction) -> RegisteredBody:
    """The registered body; raises UserError when there is none."""
    return _bodies.find(declaration)


def make_configuration(of: Variant, calls: Sequence[Call], interpreted: bool, target: TileTarget
                       ) -> Any:
    """The configuration of a device function for its operands' formats and these calls."""
    formats = operand_formats([operand.name for operand in of.function.operands], of.formats)
    return body_of(of.function).configure(Shape(tuple(calls), formats, interpreted, target))


def configurations(calls: Iterable[Call], kinds: FunctionTable | None = None, *,
                   target: str = "generic", interpreted: bool = False,
                   ring_pieces: int | None = None) -> dict[Variant, Any]:
    """Each entry of a function table → its configuration for its share of the calls.

    kinds: by default what the calls need. target: a key of `TILE_TARGETS`. ring_pieces: in
    the place of the target's.
    """
    tiles = TILE_TARGETS[target]
    if ring_pieces is not None:
        tiles = replace(tiles, ring_pieces=ring_pieces)
    calls = tuple(calls)
    table = kinds or FunctionTable.of(calls)
    return {of: make_configuration(of, its_calls, interpreted, tiles)
            for of, its_calls in table.calls(calls).items()}


def kernel_fingerprint(functions: Sequence[Any], configured: Sequence[Any] = ()) -> str:
    """Changes when a body, a helper it calls, its configuration or the layout changes.

    The compiler's own cache key does not see bodies that are passed in a tuple, and would hand
    out a kernel with the old ones. Nor does it see which functions are calls (`noinline`): the
    files that say so are part of this.
    """
    files = {*map(str, compiled_sources(GPU)),
             *(function.fn.__code__.co_filename for function in functions)}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(Path(file).read_bytes())
    for function in functions:
        key = getattr(function, "cache_key", None)  # interpreted functions have none
        digest.update(str(key or function.fn.__qualname__).encode() + b"\0")
    digest.update(repr(tuple(configured)).encode())
    return digest.hexdigest()


def kernel_tables(configured: Mapping[Variant, Any]
                  ) -> tuple[tuple[Any, ...], tuple[Any, ...], str]:
    """What `run_worker` is compiled with: bodies, configurations and fingerprint, by kind."""
    bodies = tuple(body_of(of.function).function for of in configured)
    loaders = [loader for of in configured for loader in loaders_of(of.formats)]
    values = tuple(configured.values())
    return bodies, values, kernel_fingerprint((*bodies, *loaders), values)
