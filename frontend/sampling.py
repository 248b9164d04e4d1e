"""How tokens are chosen: the values of a request, their limits, and those a model asks for."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from event_tensor.errors import UserError

SEED_BITS = 63
FILTERS = ("top_k", "top_p", "min_p")  # who asks for one of these asks for sampling
TRANSFORMERS_TOP_K = 50  # what transformers takes where generation_config.json samples without one


@dataclass(frozen=True, slots=True)
class Sampling:
    """Logits are processed in the order of the fields, as transformers does; then one is drawn.

    repetition_penalty: divides positive logits of tokens that have occurred, multiplies negative
    ones; 1 for none. temperature: 0 chooses the most likely token (greedy). top_k: 0 for all.
    top_p in (0, 1], min_p in [0, 1]. seed: None for a random one. logprobs: whether the
    log-probability of each chosen token is recorded, of the model's own logits.
    """

    repetition_penalty: float = 1.0
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
            "temperature": (self.temperature >= 0, "0 (greedy) or above"),
            "top_k": (self.top_k >= 0 and int(self.top_k) == self.top_k,
                      "a whole number, 0 (all tokens) or above"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1"),
            "seed": (self.seed is None or 0 <= self.seed < 2**SEED_BITS,
                     f"from 0 to 2**{SEED_BITS} - 1")}
        for name, (allowed, wanted) in limits.items():
            value = getattr(self, name)
            if not allowed or (isinstance(value, float) and not math.isfinite(value)):
                raise UserError(f"{name} is {value}; give a value {wanted}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    def with_options(self, options: Mapping[str, Any]) -> Sampling:
        """These values, those given in `options` in their place; None there changes nothing.

        A filter without a temperature, where the model would be greedy, means temperature 1.
        Raises UserError for an unknown name or a value outside its limits.
        """
        known = [field.name for field in fields(self)]
        for name in options:
            if name not in known:
                raise UserError(f"{name!r} is not an option of generation; sampling takes "
                                f"{', '.join(known)}")
        given = {name: value for name, value in options.items() if value is not None}
        if self.is_greedy and "temperature" not in given and any(f in given for f in FILTERS):
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

    def summary(self) -> dict[str, Any]:
        """The values that matter, for people and JSON."""
        if self.is_greedy:
            return {"temperature": 0.0, "repetition_penalty": self.repetition_penalty}
        return {field.name: getattr(self, field.name) for field in fields(self)
                if field.name != "logprobs"}


def sampling_of(generation: Mapping[str, Any] | None, source: str) -> Sampling:
    """What generation_config.json (or a model's generation_config) asks for; greedy unless
    do_sample is true. Raises UserError naming `source` for a value that cannot be."""
    found = {name: value for name, value in (generation or {}).items() if value is not None}
    values = {"repetition_penalty": found.get("repetition_penalty", 1.0)}
    if found.get("do_sample"):
        values |= {"temperature": found.get("temperature", 1.0),
                   "top_k": found.get("top_k", TRANSFORMERS_TOP_K),
                   "top_p": found.get("top_p", 1.0), "min_p": found.get("min_p", 0.0)}
    try:
        return Sampling().with_options(values)
    except (UserError, TypeError) as error:
        raise UserError(f"{source}: {error}") from None
