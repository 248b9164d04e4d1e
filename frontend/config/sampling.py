"""How tokens are chosen: the values of a request, and their limits."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from event_tensor.errors import UserError
from frontend.model_files.token_lists import READERS

SEED_BITS = 63
NEUTRAL = {"top_k": 0, "top_p": 1, "min_p": 0}  # filters that keep every token
WHOLE = "a whole number, 0 (none) or above"
SEED_MULTIPLIERS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of SplitMix64 (Steele et al. 2014)
SEED_STEP = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Sampling:
    """Logits are processed in the order of the fields, as transformers does; then one is drawn.

    sequence_bias: added to the logit of the last token of a sequence where the others have just
    come. repetition_penalty: divides positive logits of tokens that have occurred, multiplies
    negative ones; 1 for none. no_repeat_ngram_size: no run of so many tokens comes twice; 0 for no
    such rule. bad_words_ids: sequences that are never completed. min_length, min_new_tokens: how
    many tokens there are, with and without the prompt, before one may end the request.
    suppress_tokens: never chosen; begin_suppress_tokens: not first. temperature: 0 chooses the most
    likely token (greedy). top_k: 0 for all. top_p in [0, 1], 0 for the most likely token; min_p in
    [0, 1]. seed: None for a random one. logprobs: whether the log-probability of each chosen token
    is recorded, of the model's own logits.
    """

    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    min_length: int = 0
    min_new_tokens: int = 0
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    logprobs: bool = False

    def __post_init__(self) -> None:
        """Raises UserError for a value outside its limits."""
        limits = {
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            **{name: (is_whole(getattr(self, name)), WHOLE)
               for name in ("no_repeat_ngram_size", "min_length", "min_new_tokens")},
            "temperature": (self.temperature >= 0, "0 (greedy) or above"),
            "top_k": (is_whole(self.top_k), "a whole number, 0 (all tokens) or above"),
            "top_p": (0 <= self.top_p <= 1, "from 0 (the likeliest token) to 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "seed": (self.seed is None or 0 <= self.seed < 2**SEED_BITS,
                     f"from 0 to 2**{SEED_BITS} - 1")}
        for name, (allowed, wanted) in limits.items():
            value = getattr(self, name)
            if not allowed or (isinstance(value, float) and not math.isfinite(value)):
                raise UserError(f"{name} is {value}; give a value {wanted}")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is chosen: all that is left of a top_p of 0 as well."""
        return self.temperature == 0 or self.top_p == 0

    @property
    def has_minimum(self) -> bool:
        return self.min_length > 0 or self.min_new_tokens > 0

    def with_options(self, options: Mapping[str, Any]) -> Sampling:
        """These values, those given in `options` in their place; None there changes nothing.

        A filter that may drop a token, given without a temperature where the model would be greedy,
        means temperature 1. Raises UserError for an unknown name or a value outside its limits.
        """
        known = [field.name for field in fields(self)]
        for name in options:
            if name not in known:
                raise UserError(f"{name!r} is not an option of generation; sampling takes "
                                f"{', '.join(known)}")
        given = {name: value for name, value in options.items() if value is not None}
        given |= {name: READERS[name](name, given[name]) for name in READERS.keys() & given.keys()}
        filters = any(given.get(name, neutral) != neutral for name, neutral in NEUTRAL.items())
        if self.temperature == 0 and "temperature" not in given and filters:
            given["temperature"] = 1.0
        try:
            return replace(self, **given)
        except TypeError:
            raise UserError(f"sampling options must be numbers; given were {given}") from None

    def with_seed(self) -> Sampling:
        """The same with a seed: a random one where none is given and one is needed."""
        if self.seed is not None or self.is_greedy:
            return self
        return replace(self, seed=secrets.randbits(SEED_BITS))

    def of_row(self, row: int) -> Sampling:
        """What a row of a batch draws with: the first one with the seed, each other one with a
        stream of its own that the seed fixes. A prompt alone draws the same with that seed."""
        if self.seed is None or row == 0:
            return self
        return replace(self, seed=mix(self.seed + row * SEED_STEP) >> (64 - SEED_BITS))

    def summary(self) -> dict[str, Any]:
        """The values that matter, for people and JSON."""
        always = ["temperature", "repetition_penalty"]
        if not self.is_greedy:
            always += [*NEUTRAL, "seed"]
        found = {name: getattr(self, name) for name in always}
        if self.is_greedy:
            found["temperature"] = 0.0
        return found | {f.name: getattr(self, f.name) for f in fields(self)
                        if f.name not in (*found, *NEUTRAL, "seed", "logprobs")
                        and getattr(self, f.name) != f.default}


def is_whole(value: float) -> bool:
    return 0 <= value < math.inf and int(value) == value


def mix(value: int) -> int:
    """64 bits of which each depends on every bit of `value`: the finaliser of SplitMix64."""
    value &= 2**64 - 1
    for shift, multiplier in zip((30, 27), SEED_MULTIPLIERS, strict=True):
        value = ((value ^ (value >> shift)) * multiplier) & (2**64 - 1)
    return value ^ (value >> 31)
