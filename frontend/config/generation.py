"""generation_config.json: what a model asks of generation, and what of it we cannot do.

Fields and defaults are those of transformers' GenerationConfig.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from event_tensor.errors import UserError
from frontend.config.sampling import Sampling

TRANSFORMERS_TOP_K = 50  # what transformers takes where the file samples without one
PROCESSORS = ("sequence_bias", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids",
              "min_length", "min_new_tokens", "suppress_tokens", "begin_suppress_tokens")
FILTERS = {"temperature": 1.0, "top_k": TRANSFORMERS_TOP_K, "top_p": 1.0, "min_p": 0.0}

# Fields that would change tokens, or how many there are, and that no launch serves → the values
# with which they change nothing. Those of the second table count only where the file samples.
UNSERVED: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,), "num_beam_groups": (1,), "penalty_alpha": (0,), "dola_layers": (),
    "encoder_repetition_penalty": (1,), "encoder_no_repeat_ngram_size": (0,),  # of the prompt
    "constraints": (), "force_words_ids": (), "forced_bos_token_id": (), "forced_eos_token_id": (),
    "forced_decoder_ids": (), "exponential_decay_length_penalty": (), "guidance_scale": (1,),
    "watermarking_config": (), "token_healing": (False,), "remove_invalid_values": (False,),
    "max_time": (), "num_return_sequences": (1,)}
UNSERVED_SAMPLING: Mapping[str, tuple[Any, ...]] = {
    "typical_p": (1,), "epsilon_cutoff": (0,), "eta_cutoff": (0,), "top_h": (1,)}


def sampling_of(generation: Mapping[str, Any] | None, source: str) -> Sampling:
    """What generation_config.json (or a model's generation_config) asks for; greedy unless
    do_sample is true. Raises UserError naming `source` for a value that cannot be."""
    found = {name: value for name, value in (generation or {}).items() if value is not None}
    values = {name: found[name] for name in PROCESSORS if name in found}
    if found.get("do_sample"):
        values |= {name: found.get(name, default) for name, default in FILTERS.items()}
    try:
        return Sampling().with_options(values)
    except (UserError, TypeError) as error:
        raise UserError(f"{source}: {error}") from None


@dataclass(frozen=True, slots=True)
class Ends:
    """Where a model wants its output to end, for callers that do not say; None where it does not
    say either. max_length counts the prompt as well."""

    max_new_tokens: int | None = None
    max_length: int | None = None
    stop_strings: tuple[str, ...] = ()

    def new_tokens(self, prompt_tokens: int, default: int) -> int:
        """At least one."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return default if self.max_length is None else max(self.max_length - prompt_tokens, 1)


def ends_of(generation: Mapping[str, Any] | None, source: str) -> Ends:
    """Raises UserError naming `source` for a value that cannot be."""
    found = generation or {}
    lengths = {}
    for name in ("max_new_tokens", "max_length"):
        lengths[name] = value = found.get(name)
        if value is not None and (type(value) is not int or value < 1):
            raise UserError(f"{source}: {name} is {value!r}; give at least 1")
    texts = found.get("stop_strings") or ()
    texts = (texts,) if isinstance(texts, str) else texts
    if not isinstance(texts, (list, tuple)) or not all(
            isinstance(text, str) and text for text in texts):
        raise UserError(f"{source}: stop_strings is {texts!r}; give a list of texts")
    return Ends(**lengths, stop_strings=tuple(texts))


def unserved_fields(generation: Mapping[str, Any] | None) -> dict[str, Any]:
    """Fields of the file that would change what transformers generates and change nothing here."""
    values = generation or {}
    tables = [UNSERVED, UNSERVED_SAMPLING] if values.get("do_sample") else [UNSERVED]
    return {name: values[name] for table in tables for name, neutral in table.items()
            if values.get(name) is not None and values[name] not in neutral
            and values[name] != []}


def warn_of_unserved(generation: Mapping[str, Any] | None, source: str) -> None:
    """A UserWarning that names each such field."""
    unserved = unserved_fields(generation)
    if unserved:
        fields = ", ".join(f"{name}={value!r}" for name, value in unserved.items())
        warnings.warn(f"{source} asks for what generation does not do here, and its tokens will "
                      f"differ from transformers': {fields}; remove what you can do without",
                      stacklevel=2)
