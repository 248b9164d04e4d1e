"""A conversation: messages through the chat template, and a KV cache kept from turn to turn."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from event_tensor.errors import UserError
from frontend.decode.end_tokens import conversation_end_ids
from frontend.decode.generation import Generation, Token, percentiles_ms
from frontend.decode.request_options import TokenIds, whole
from frontend.decode.served import Served
from frontend.model_files.chat_template import Message

MAX_ANSWER_TOKENS = 1024  # where the caller sets no limit


class Streams(Served, Protocol):
    """A decoder, as a conversation uses it."""

    def stream(self, prompt: Any, *, result: Generation, **options: Any) -> Iterator[Token]: ...

    def interrupt(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ConversationStats:
    """Sums over the answered turns; TTFT is their median, TPOT is over all their tokens."""

    turns: int
    context_tokens: int  # positions that the conversation fills so far
    max_context: int
    prefilled_tokens: int  # of all prompts, computed
    reused_tokens: int  # of all prompts, found in the KV cache
    generated_tokens: int
    ttft_ms: float | None
    tpot_ms: dict[str, float] | None


class Conversation:
    """Turns with one model. Made by `Decoder.chat`.

    Each turn is the template's text of the whole conversation; only the tokens that differ from
    what the KV cache holds are computed. Another generation of the same decoder takes the cache
    for itself: the next turn is then computed from where they part.
    """

    def __init__(self, decoder: Streams, system: str | None = None) -> None:
        """Raises UserError for a model without a tokenizer or a chat template."""
        if decoder.tokenizer is None:
            raise UserError("this model has no tokenizer, and a conversation is text; compile "
                            "from a model directory that holds tokenizer.json")
        self._decoder = decoder
        self._encode = decoder.tokenizer.encode_bare
        self._template = decoder.tokenizer.chat_template()
        self._end_ids = conversation_end_ids(decoder, decoder.tokenizer, self._template) or None
        self._system: list[Message] = (
            [] if system is None else [{"role": "system", "content": system}])
        self._messages: list[Message] = []
        self._turns: list[Generation] = []

    @property
    def history(self) -> list[Message]:
        """All messages so far, the system prompt first."""
        return [dict(message) for message in (*self._system, *self._messages)]

    @property
    def last(self) -> Generation | None:
        """The latest answer, with its times; None before the first."""
        return self._turns[-1] if self._turns else None

    @property
    def context_tokens(self) -> int:
        """Positions that the conversation fills so far."""
        last = self.last
        return len(last.prompt_ids) + len(last.output_ids) if last else 0

    def send(self, text: str, *, max_new_tokens: int | None = None,
             ignore_eos: bool | None = False, stop: str | Sequence[str] | None = (),
             eos_token_id: TokenIds = None, **sampling: Any
             ) -> Generator[Token, None, None]:
        """Streams the answer to `text`. Leaving the loop early, or `interrupt`, ends the launch.

        The answer joins the history as far as it was seen; if nothing was, neither does `text`.
        max_new_tokens: by default as generation_config.json says, else MAX_ANSWER_TOKENS; never
        beyond the end of the context.
        eos_token_id: in the place of the model's own end tokens and the chat template's end of
        turn. Other options as in `Decoder.generate`.

        Raises UserError, and leaves the conversation as it was, for values outside their limits, a
        template that refuses the messages, and a conversation that no longer fits.
        """
        if not isinstance(text, str):
            raise UserError(f"a message is text, not {type(text).__name__}; give a str")
        message = {"role": "user", "content": text}
        ids = self._encode(self._template.render([*self.history, message]))
        default = self._decoder.config.ends.new_tokens(len(ids), MAX_ANSWER_TOKENS)
        limit = whole("max_new_tokens", max_new_tokens, default)
        result = Generation([])
        tokens = self._decoder.stream(
            ids, max_new_tokens=min(limit, self._room(len(ids))), ignore_eos=ignore_eos, stop=stop,
            eos_token_id=self._end_ids if eos_token_id is None else eos_token_id, result=result,
            keep_cache=True, is_answer=True, **sampling)
        return self._answer(message, tokens, result)

    def interrupt(self) -> None:
        """Have the answer that is streaming end; may be called by a signal handler or a thread."""
        self._decoder.interrupt()

    def reset(self) -> None:
        """Forgets all but the system prompt."""
        self._messages, self._turns = [], []

    @property
    def stats(self) -> ConversationStats:
        turns = self._turns
        prefilled = sum(turn.prefilled_tokens for turn in turns)
        gaps = [turn.inter_token_ms for turn in turns]
        return ConversationStats(
            len(turns), self.context_tokens, self._decoder.max_context, prefilled,
            sum(len(turn.prompt_ids) for turn in turns) - prefilled,
            sum(len(turn.output_ids) for turn in turns),
            float(np.median([turn.ttft_ms for turn in turns])) if turns else None,
            percentiles_ms(np.concatenate(gaps)) if gaps else None)

    def _room(self, prompt_tokens: int) -> int:
        """Positions left for an answer, at least one."""
        limit = self._decoder.max_context
        if prompt_tokens < limit:
            return limit - prompt_tokens
        larger = limit < self._decoder.config.max_position_embeddings
        raise UserError(
            f"with this message the conversation has {prompt_tokens} tokens and leaves no room for "
            f"an answer in max_context {limit}; shorten it, start over (/reset)"
            + (" or compile with a larger --max-context" if larger else ""))

    def _answer(self, message: Message, tokens: Iterator[Token], result: Generation
                ) -> Generator[Token, None, None]:
        try:
            yield from tokens
        finally:
            if result.output_ids:
                self._messages += [message, {"role": "assistant", "content": result.text or ""}]
                self._turns.append(result)
