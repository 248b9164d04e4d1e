"""What a decoder refuses before it launches anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from event_tensor.errors import UserError
from frontend.watcher import RunOptions

if TYPE_CHECKING:
    from frontend.decoder import Decoder


def prompt_ids(decoder: Decoder, prompt: str | Sequence[int]) -> list[int]:
    """The token ids of a text, or the ids given; at least one, all within the vocabulary.

    Raises UserError otherwise, and for text where the model has no tokenizer.
    """
    if isinstance(prompt, str):
        if decoder.tokenizer is None:
            raise UserError("this model has no tokenizer; give the prompt as token ids "
                            "(--prompt-ids 1,2,3)")
        ids = decoder.tokenizer.encode(prompt)
    else:
        ids = [int(token) for token in prompt]
    if not ids:
        raise UserError("the prompt is empty; give at least one token")
    vocab = decoder.config.vocab_size
    bad = next((token for token in ids if not 0 <= token < vocab), None)
    if bad is not None:
        raise UserError(f"prompt id {bad} is outside the vocabulary of {vocab} tokens; give ids "
                        f"from 0 to {vocab - 1}")
    return ids


def check_request(decoder: Decoder, prompt_lengths: Sequence[int], options: RunOptions) -> None:
    """Raises UserError for what the compiled kernel cannot run."""
    if options.max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {options.max_new_tokens}; give at least 1")
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
