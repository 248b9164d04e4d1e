"""What the host does about a request while its launch runs: text, stop strings, why it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frontend.generation import Generation, Token
from frontend.sampling import Sampling
from frontend.stop_strings import StopFilter
from frontend.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the requests of one launch have in common."""

    max_new_tokens: int
    ignore_eos: bool
    stop: Sequence[str]
    sampling: Sampling
    trace_steps: int = 0  # of each segment; see Generation.trace


class RequestWatcher:
    """Turns the token ids of one request into tokens with text, and notices its end."""

    def __init__(self, result: Generation, options: RunOptions, end_ids: Sequence[int],
                 tokenizer: Tokenizer | None) -> None:
        self.result = result
        self.seen = len(result.prompt_ids)
        self._limit = self.seen + options.max_new_tokens
        self._end_ids = () if options.ignore_eos else tuple(end_ids)
        self._text = tokenizer.stream() if tokenizer else None
        self._stop = StopFilter(options.stop)
        self._has_logprobs = options.sampling.logprobs
        result.text = "" if tokenizer else None
        result.logprobs = [] if self._has_logprobs else None
        result.finish_reason = "aborted"  # until it ends otherwise

    @property
    def stopped(self) -> bool:
        """Whether the host has seen a stop string; the device does not know of it."""
        return self._stop.stopped

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
        piece = self._stop.push(self._text.push(token_id)) if self._text else ""
        is_last = token_id in self._end_ids or self.seen == self._limit
        if is_last and self._text and not self.stopped:
            piece += self._stop.push(self._text.flush())
        if self.stopped:
            result.finish_reason = "stop"
        elif is_last:
            piece += self._stop.flush()
            result.finish_reason = "eos" if token_id in self._end_ids else "length"
        if result.text is not None:
            result.text += piece
        return Token(token_id, piece, time_ns, logprob if self._has_logprobs else None, request)
