"""A kernel's function table: one entry for each device function and the formats of its operands."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from event_tensor.device_function import DeviceFunction
from event_tensor.errors import UserError
from event_tensor.graph import Call
from persistent_runtime.formats import FLOAT32, format_of

Formats = tuple[str | None, ...]  # of a call's operands, None where one is not given
# One name for all operands, a name for each, or those of some by operand: others are float32.
OperandFormats = str | Sequence[str] | Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Variant:
    """A device function for operands in these formats, a name for each."""

    function: DeviceFunction
    formats: tuple[str, ...]

    def serves(self, call: Call) -> bool:
        return call.function == self.function and _agree(self.formats, formats_of(call))

    def format(self, operand: str) -> str:
        """The format of one operand."""
        names = [known.name for known in self.function.operands]
        return self.formats[names.index(operand)]

    def __repr__(self) -> str:
        return f"{self.function.name}<{', '.join(self.formats)}>"


def formats_of(call: Call) -> Formats:
    return tuple(tensor.dtype if tensor is not None else None for tensor in call.args)


def variant(function: DeviceFunction, formats: OperandFormats) -> Variant:
    """Raises UserError for an unknown format."""
    each: Sequence[str]
    if isinstance(formats, str):
        each = [formats] * len(function.operands)
    elif isinstance(formats, Mapping):
        each = [formats.get(operand.name, FLOAT32.name) for operand in function.operands]
    else:
        each = formats
    for name in each:
        format_of(name)
    return Variant(function, tuple(each))


@dataclass(frozen=True, slots=True)
class FunctionTable:
    """Variants in the order of their first calls; a variant's number is its kind."""

    variants: tuple[Variant, ...]

    @classmethod
    def of(cls, calls: Iterable[Call]) -> FunctionTable:
        """As few variants as serve all calls: an optional operand that a call leaves out may have
        any format there."""
        found: dict[DeviceFunction, list[Formats]] = {}
        for call in calls:
            _join(found.setdefault(call.function, []), formats_of(call))
        return cls(tuple(
            variant(function, [name or FLOAT32.name for name in formats])
            for function, of_function in found.items() for formats in of_function))

    def serves(self, call: Call) -> bool:
        return any(known.serves(call) for known in self.variants)

    def kind_of(self, call: Call) -> int:
        """Index in the function table of what runs a call. Raises UserError where nothing does."""
        for kind, known in enumerate(self.variants):
            if known.serves(call):
                return kind
        raise UserError(f"the kernel has no {call.function.name} for the formats of {call.name}, "
                        f"{formats_of(call)}; compile it by itself")

    def calls(self, calls: Iterable[Call]) -> dict[Variant, tuple[Call, ...]]:
        """Each variant's share of the calls."""
        of_variant: dict[Variant, list[Call]] = {known: [] for known in self.variants}
        for call in calls:
            of_variant[self.variants[self.kind_of(call)]].append(call)
        return {known: tuple(its_calls) for known, its_calls in of_variant.items()}

    def __len__(self) -> int:
        return len(self.variants)


def _agree(first: Formats, second: Formats) -> bool:
    return all(a is None or b is None or a == b for a, b in zip(first, second, strict=True))


def _join(known: list[Formats], new: Formats) -> None:
    """Adds formats to those of the first variant that they agree with, or as one more."""
    for k, formats in enumerate(known):
        if _agree(formats, new):
            known[k] = tuple(a or b for a, b in zip(formats, new, strict=True))
            return
    known.append(new)
