"""The options of a request, and what a decoder refuses before it launches anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from event_tensor.errors import UserError
from frontend.decode.generation import Generation
from frontend.decode.request_options import (
    DEFAULT_NEW_TOKENS,
    RunOptions,
    TokenIds,
    sampling_options,
    stop_strings,
    truth,
    whole,
)
from frontend.decode.served import Served


def run_options(decoder: Served, prompts: Sequence[Sequence[int]], max_new_tokens: int | None,
                ignore_eos: bool | None, stop: Any, sampling: Mapping[str, Any], *,
                trace_steps: int | None = None, eos_token_id: TokenIds = None,
                is_answer: bool = False) -> RunOptions:
    """The options of `Decoder.generate`, None replaced by its default.

    How many new tokens there are at most, and stop strings, are then as generation_config.json
    says. Raises UserError for an unknown option and for a value of a wrong type or outside its
    limits.
    """
    chosen = decoder.config.sampling.with_options(sampling_options(sampling)).with_seed()
    ends, longest = decoder.config.ends, max(map(len, prompts))
    room = max(decoder.max_context - longest, 1)
    default = min(ends.new_tokens(longest, DEFAULT_NEW_TOKENS), room)
    goes_on = truth("ignore_eos", ignore_eos) or decoder.tokenizer is None
    texts = stop_strings(stop) or (() if goes_on else ends.stop_strings)
    return RunOptions(whole("max_new_tokens", max_new_tokens, default),
                      truth("ignore_eos", ignore_eos), texts, chosen,
                      whole("trace_steps", trace_steps), eos_token_id, is_answer)


def collector(result: Generation | None) -> Generation:
    """Where a stream collects what it yields."""
    if result is not None and not isinstance(result, Generation):
        raise UserError(f"result is a {type(result).__name__}; give a Generation, or leave it out")
    return Generation([]) if result is None else result


def check_request(decoder: Served, prompt_lengths: Sequence[int], options: RunOptions) -> None:
    """Raises UserError for what the compiled kernel cannot run."""
    if options.max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {options.max_new_tokens}; give at least 1")
    if options.trace_steps < 0:
        raise UserError(f"trace_steps is {options.trace_steps}; give 0 or more")
    if options.stop and decoder.tokenizer is None:
        raise UserError("this model has no tokenizer, and stop strings are text; leave them out")
    if len(prompt_lengths) > decoder.max_requests:
        raise UserError(f"{len(prompt_lengths)} prompts at once exceed max_requests "
                        f"{decoder.max_requests}; give fewer or compile with a larger "
                        f"max_requests")
    for length in prompt_lengths:
        needed = length + options.max_new_tokens
        if needed > decoder.max_context:
            possible = needed <= decoder.config.max_position_embeddings
            raise UserError(
                f"{length} prompt tokens and {options.max_new_tokens} new tokens exceed "
                f"max_context {decoder.max_context}; shorten one"
                + (f" or compile with --max-context {needed}" if possible else ""))
