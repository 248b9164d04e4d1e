"""The options of a generation as they are given: None is the default, a wrong type is refused."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

from event_tensor.errors import UserError
from frontend.config.sampling import Sampling

DEFAULT_NEW_TOKENS = 128
TokenIds = int | Sequence[int] | None  # None: the model's own


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the requests of one launch have in common."""

    max_new_tokens: int
    ignore_eos: bool
    stop: Sequence[str]
    sampling: Sampling
    trace_steps: int = 0  # of each segment; see Generation.trace
    eos_token_id: TokenIds = None
    is_answer: bool = False  # the text stands alone: it does not go on from the prompt's


def whole(name: str, value: Any, default: int = 0) -> int:
    """A whole number. Raises UserError for another type, floats and bools among them."""
    if value is None:
        return default
    try:
        if not is_bool(value):
            return operator.index(value)
    except TypeError:
        pass
    raise UserError(f"{name} is {shown(value)}, which is no whole number; give one like 8")


def shown(value: Any) -> str:
    """On one short line."""
    return " ".join(repr(value).split())[:60]


def number(name: str, value: Any) -> float:
    if not isinstance(value, Real) or is_bool(value):
        raise UserError(f"{name} is {shown(value)}, which is no number; give one like 0.5")
    try:
        return float(value)
    except OverflowError:
        raise UserError(f"{name} is {shown(value)}, which is too large") from None


def truth(name: str, value: Any) -> bool:
    if value is None:
        return False
    if not is_bool(value):
        raise UserError(f"{name} is {shown(value)}; give True or False")
    return bool(value)


def is_bool(value: Any) -> bool:
    """Of Python or of an array library."""
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")


def stop_strings(stop: Any) -> tuple[str, ...]:
    """One text or a list of texts."""
    if stop is None:
        return ()
    if isinstance(stop, str):
        return (stop,)
    if not isinstance(stop, (list, tuple)) or not all(isinstance(text, str) for text in stop):
        raise UserError(f"stop is {shown(stop)}; give a text or a list of texts")
    return tuple(stop)


READERS: dict[str, Callable[[str, Any], Any]] = {  # by the type of a field of Sampling
    "float": number, "int": whole, "int | None": whole, "bool": truth}


def sampling_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `Sampling` among the options, each in its type; those that are None are left
    out, and so keep what the model says. An unknown name stays, for `Sampling` to refuse."""
    types = {field.name: str(field.type) for field in fields(Sampling)}
    return {name: READERS[types[name]](name, value) if types.get(name) in READERS else value
            for name, value in given.items() if value is not None or name not in types}
