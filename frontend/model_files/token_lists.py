"""Token ids in options, as people and JSON files write them → tuples.

Each function raises UserError, naming the option, for anything else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from event_tensor.errors import UserError


def token_ids(option: str, value: Any) -> tuple[int, ...]:
    """A list of token ids."""
    if hasattr(value, "tolist"):  # an array or a tensor
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or any(type(token) is not int for token in value):
        raise UserError(f"{option} is {value!r}; give a list of token ids")
    return tuple(value)


def token_sequences(option: str, value: Any) -> tuple[tuple[int, ...], ...]:
    """A list of non-empty lists of token ids."""
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{option} is {value!r}; give a list of lists of token ids")
    found = tuple(token_ids(f"an entry of {option}", entry) for entry in value)
    if () in found:
        raise UserError(f"{option} has an empty list; leave it out")
    return found


def sequence_biases(option: str, value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    """{ids: bias}, or a list of [ids, bias]; of equal ids the last one counts."""
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, (list, tuple)) or any(
            not isinstance(pair, (list, tuple)) or len(pair) != 2 for pair in pairs):
        raise UserError(f"{option} is {value!r}; give {{token ids: bias}} or a list of [token ids, "
                        f"bias]")
    found = {}
    for tokens, bias in pairs:
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or math.isnan(bias):
            raise UserError(f"{option} has the bias {bias!r}; give a number")
        (ids,) = token_sequences(option, [tokens])
        found[ids] = float(bias)
    return tuple(found.items())


# option of generation → what reads it
READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "sequence_bias": sequence_biases, "bad_words_ids": token_sequences,
    "suppress_tokens": token_ids, "begin_suppress_tokens": token_ids}
