"""transformers' prepared logits processors → the options of generation that do the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from event_tensor.errors import UserError

Options = dict[str, Any]
REMEDY = "leave it out, or leave out custom_generate"


def penalty(processor: Any, width: int) -> Options:
    # transformers gives the number of padding tokens here, one for each row, which we do not have
    if isinstance(processor.prompt_ignore_length, int):
        raise UserError("the megakernel penalises repetitions of the whole prompt; leave "
                        "prompt_ignore_length out")
    return {"repetition_penalty": processor.penalty}


def min_new_tokens(tokens: int) -> Options:
    return {"min_new_tokens": max(tokens, 0)}


def begin_suppress_tokens(processor: Any, width: int) -> Options:
    if processor.begin_index != width:
        raise UserError(f"the megakernel suppresses begin_suppress_tokens at the first new token, "
                        f"{width}, not at {processor.begin_index}; {REMEDY}")
    return {"begin_suppress_tokens": integers(processor.begin_suppress_tokens)}


def integers(values: Any) -> list[int]:
    return [int(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]


# Class of a step of sampling → (the step, tokens of the prompt with padding) → options, in the
# order in which transformers takes the steps and we do.
PROCESSORS: Mapping[str, Callable[[Any, int], Options]] = {
    "SequenceBiasLogitsProcessor": lambda p, _: {"sequence_bias": dict(p.sequence_bias)},
    "RepetitionPenaltyLogitsProcessor": penalty,
    "NoRepeatNGramLogitsProcessor": lambda p, _: {"no_repeat_ngram_size": p.ngram_size},
    "NoBadWordsLogitsProcessor": lambda p, _: {"bad_words_ids": list(map(list, p.sequence_bias))},
    "MinLengthLogitsProcessor": lambda p, width: min_new_tokens(p.min_length - width),
    "MinNewTokensLengthLogitsProcessor": lambda p, width: min_new_tokens(
        p.min_new_tokens + p.prompt_length_to_skip - width),
    "SuppressTokensLogitsProcessor": lambda p, _: {"suppress_tokens": integers(p.suppress_tokens)},
    "SuppressTokensAtBeginLogitsProcessor": begin_suppress_tokens,
    "TemperatureLogitsWarper": lambda p, _: {"temperature": p.temperature},
    "TopKLogitsWarper": lambda p, _: {"top_k": p.top_k},
    "TopPLogitsWarper": lambda p, _: {"top_p": p.top_p},
    "MinPLogitsWarper": lambda p, _: {"min_p": p.min_p}}
BANS_ENDS = ("MinLengthLogitsProcessor", "MinNewTokensLengthLogitsProcessor")


def processor_options(processors: Iterable[Any], do_sample: bool, width: int,
                      end_ids: Iterable[int]) -> Options:
    """Fields of `Sampling` that do what the processors do, to prompts of `width` tokens, padding
    included, that `end_ids` end.

    Raises UserError naming a processor that none of them does, or one out of transformers' order.
    """
    options: Options = {"temperature": 1.0 if do_sample else 0.0, "top_k": 0, "top_p": 1.0,
                        "min_p": 0.0, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
                        "min_length": 0, "min_new_tokens": 0, "suppress_tokens": [],
                        "begin_suppress_tokens": [], "bad_words_ids": [], "sequence_bias": []}
    order, last = list(PROCESSORS), -1
    for processor in processors:
        name = type(processor).__name__
        if name not in PROCESSORS:
            raise UserError(f"the megakernel does not run the logits processor {name}; {REMEDY}")
        if order.index(name) <= last:
            raise UserError(f"the megakernel runs each logits processor once and in transformers' "
                            f"order, and {name} is out of it; {REMEDY}")
        last = order.index(name)
        require_plain(processor, name, set(end_ids))
        found = PROCESSORS[name](processor, width)
        if "min_new_tokens" in found:
            found["min_new_tokens"] = max(found["min_new_tokens"], options["min_new_tokens"])
        options |= found
    return options


def require_plain(processor: Any, name: str, end_ids: set[int]) -> None:
    """Raises UserError where a processor has been told something that no option says."""
    if getattr(processor, "filter_value", -math.inf) != -math.inf:
        raise UserError(f"the megakernel drops tokens altogether; leave filter_value of {name} out")
    if getattr(processor, "min_tokens_to_keep", 1) != 1:
        raise UserError(f"the megakernel keeps at least one token; leave min_tokens_to_keep of "
                        f"{name} out")
    if name in BANS_ENDS and set(integers(processor.eos_token_id)) != end_ids:
        raise UserError(f"the end tokens of {name} are {integers(processor.eos_token_id)}, and the "
                        f"prompts end at {sorted(end_ids)}; give the same ones")
