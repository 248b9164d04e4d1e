"""What the host does about a request while its launch runs: text, stop strings, why it ended."""

from __future__ import annotations

from collections.abc import Sequence

from frontend.decode.end_tokens import EndTokens
from frontend.decode.generation import Generation, Token
from frontend.decode.request_options import RunOptions
from frontend.decode.stop_strings import StopFilter
from frontend.model_files.tokenizer import Tokenizer


class ShownText:
    """The text of a request's tokens as it may be shown: no special tokens, no stop string.

    It goes on from the prompt's text. An answer stands alone, as transformers decodes one (its
    `TextStreamer`, and `decode` of the new tokens): the prompt ends with what a template writes.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], options: RunOptions
                 ) -> None:
        before = () if options.is_answer else prompt_ids
        self._text = tokenizer.stream(before)
        self._matched = tokenizer.stream_all(before) if options.stop else None
        self._stop = StopFilter(options.stop)

    @property
    def stopped(self) -> bool:
        return self._stop.stopped

    def push(self, token_id: int) -> str:
        matched = self._matched.push(token_id) if self._matched else None
        return self._stop.push(self._text.push(token_id), matched)

    def flush(self) -> str:
        """What is held back, up to a stop string in it."""
        matched = self._matched.flush() if self._matched else None
        return self._stop.push(self._text.flush(), matched) + self._stop.flush()


class RequestWatcher:
    """Turns the token ids of one request into tokens with text, and notices its end."""

    def __init__(self, result: Generation, options: RunOptions, ends: EndTokens,
                 tokenizer: Tokenizer | None) -> None:
        self.result = result
        self.seen = len(result.prompt_ids)
        self._limit = self.seen + options.max_new_tokens
        self._ends = ends
        self._text = ShownText(tokenizer, result.prompt_ids, options) if tokenizer else None
        self._has_logprobs = options.sampling.logprobs
        result.text = "" if tokenizer else None
        result.logprobs = [] if self._has_logprobs else None
        result.finish_reason = "aborted"  # until it ends otherwise

    @property
    def stopped(self) -> bool:
        """Whether the host has seen a stop string; the device does not know of it."""
        return self._text is not None and self._text.stopped

    def push(self, token_id: int, time_ns: int, logprob: float, request: int) -> Token | None:
        """The next token; None for one after a stop string."""
        self.seen += 1
        if self.stopped:
            return None
        result = self.result
        result.output_ids.append(token_id)
        result.token_times_ns.append(time_ns)
        if result.logprobs is not None:
            result.logprobs.append(logprob)
        is_last = token_id in self._ends.ids or self.seen == self._limit
        piece = ""
        if self._text is not None:
            piece = self._text.push(token_id) + (self._text.flush() if is_last else "")
            result.text = (result.text or "") + piece
        if self.stopped or token_id in self._ends.stop:
            result.finish_reason = "stop"
        elif is_last:
            result.finish_reason = "eos" if token_id in self._ends.eos else "length"
        return Token(token_id, piece, time_ns, logprob if self._has_logprobs else None, request)
