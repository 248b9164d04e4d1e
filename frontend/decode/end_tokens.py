"""Which tokens end a request: the model's own, those a caller gives, stop strings of one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from event_tensor.errors import UserError
from frontend.decode.request_options import RunOptions
from frontend.decode.served import Served
from frontend.decode.stop_strings import check_stop_strings
from frontend.model_files.chat_template import ChatTemplate
from frontend.model_files.tokenizer import Tokenizer

MAX_END_TOKENS = 32  # memory is held for so many: no model names more than a few
ANSWER = "marked-answer"  # no template changes it, and none has it


@dataclass(frozen=True, slots=True)
class EndTokens:
    """Ids that the device ends a request after, by the reason that this gives."""

    eos: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys((*self.eos, *self.stop)))

    @property
    def padded_ids(self) -> npt.NDArray[np.int32]:
        """[MAX_END_TOKENS], as the device reads them: no token has the id -1."""
        return np.array([*self.ids, *[-1] * (MAX_END_TOKENS - len(self.ids))], np.int32)


def end_tokens(decoder: Served, options: RunOptions) -> EndTokens:
    """Raises UserError for ids outside the vocabulary, and for more than the device looks for."""
    check_stop_strings(options.stop)
    vocab_size = decoder.config.vocab_size
    if options.ignore_eos:
        eos: tuple[int, ...] = ()
    elif options.eos_token_id is None:
        eos = own_eos_ids(decoder)
    else:
        eos = token_ids(options.eos_token_id, vocab_size)
    tokenizer = decoder.tokenizer
    found = [tokenizer.special_token_id(text) for text in options.stop] if tokenizer else []
    stop = tuple(token_id for token_id in found if token_id is not None and token_id < vocab_size)
    ends = EndTokens(eos, stop)
    if len(ends.ids) > MAX_END_TOKENS:
        raise UserError(f"a request ends at {MAX_END_TOKENS} different tokens at most, and these "
                        f"are {len(ends.ids)}; name fewer (eos_token_id, --eos-token-id)")
    return ends


def own_eos_ids(decoder: Served) -> tuple[int, ...]:
    """eos_token_id of generation_config.json or config.json, and the tokenizer's eos_token.

    transformers' `generate` knows only the former. A tokenizer that names another token has it from
    a later training (a chat model over the config of its base), so that is where a text ends: vLLM
    and llama.cpp end there, too. Where the config is right, it names that token itself.
    """
    ids = list(decoder.config.eos_token_ids)
    if decoder.tokenizer is not None and decoder.tokenizer.eos_token_id is not None:
        ids.append(decoder.tokenizer.eos_token_id)
    return tuple(dict.fromkeys(k for k in ids if k < decoder.config.vocab_size))


def token_ids(given: Any, vocab_size: int) -> tuple[int, ...]:
    """One id, or a sequence, array or tensor of some. Raises UserError for anything else."""
    try:
        ids = np.atleast_1d(np.asarray(given))
    except (TypeError, ValueError, RuntimeError):  # ragged; a tensor that is on a GPU
        ids = np.empty(0)
    if ids.dtype.kind not in "iu" or ids.ndim != 1 or not ids.size or (
            ids.min() < 0 or ids.max() >= vocab_size):
        raise UserError(f"eos_token_id is {given!r}; give a token id or a list of them, each from "
                        f"0 to {vocab_size - 1}")
    return tuple(dict.fromkeys(ids.tolist()))


def conversation_end_ids(decoder: Served, tokenizer: Tokenizer, template: ChatTemplate
                         ) -> tuple[int, ...]:
    """The model's own end tokens, and the one with which its chat template ends an answer."""
    end = end_of_turn(tokenizer, template)
    own = own_eos_ids(decoder)
    known = end is None or end in own or end >= decoder.config.vocab_size
    return own if known or end is None else (*own, end)


def end_of_turn(tokenizer: Tokenizer, template: ChatTemplate) -> int | None:
    """The special token that the template writes after an answer; None if that is no token.

    Where it writes none before the next message, that message's own first token ends the answer.
    """
    roles: Sequence[tuple[str, str]] = (("user", "first"), ("assistant", ANSWER), ("user", "next"))
    try:
        text = template.render([{"role": role, "content": content} for role, content in roles])
    except UserError:  # it refuses this conversation, as it may
        return None
    _, found, rest = text.rpartition(ANSWER)
    ids = tokenizer.encode_bare(rest.lstrip()) if found else []
    return ids[0] if ids and tokenizer.is_silent(ids[0]) else None
