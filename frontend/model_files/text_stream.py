"""Text of tokens that come one by one: whole characters, spaces as in the text decoded at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from os.path import commonprefix

REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not (or not yet) a character
MAX_HELD_TOKENS = 8  # a character has at most 4 bytes, so at most 4 tokens: more is not a character
MAX_HELD_CHARACTERS = 3  # an unfinished character shows as one to three replacement characters
OVERLAP_TOKENS = 12  # enough to see MAX_HELD_CHARACTERS, of up to 3 bytes each, in full


class TextStream:
    """Incremental detokenizer: the pieces that `push` and `flush` return join to the whole text.

    Every step decodes only the tokens since the last complete character and those before it that
    the decoder's treatment of word boundaries depends on. With `prompt_ids`, the text goes on from
    theirs: text of the prompt + pieces = text of all tokens, so that a first word keeps the space
    before it (a decoder that marks words with ▁ drops it at the very beginning). A character whose
    first bytes the prompt has belongs to the pieces.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], is_silent: Callable[[int], bool],
                 prompt_ids: Sequence[int] = ()) -> None:
        self._decode, self._is_silent = decode, is_silent
        # the tokens we decode, and how many of them are finished: the others are held
        self._window, self._finished = context(decode, is_silent, prompt_ids)
        self._shown = shown_text(decode, self._window, self._finished)  # the text that is out

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes: empty while a character is unfinished."""
        if self._is_silent(token_id):
            return ""
        self._window.append(token_id)
        text = self._decode(self._window)
        if not text.endswith(REPLACEMENT):
            piece = self._new(text)
            if not piece:  # nothing to see yet: a lone word boundary
                return ""
            self._window = self._window[self._finished:]
            self._finished = len(self._window)
            self._shown = self._decode(self._window)
            return piece
        if len(self._window) - self._finished <= MAX_HELD_TOKENS:
            return ""
        # These bytes are no text. All but the last few characters are settled, whatever follows.
        held = min(len(text) - len(text.rstrip(REPLACEMENT)), MAX_HELD_CHARACTERS)
        piece = self._new(text[:len(text) - held])
        self._window = self._window[-OVERLAP_TOKENS:]
        self._finished = len(self._window) - MAX_HELD_CHARACTERS
        text = self._decode(self._window)
        self._shown = text[:len(text) - held]
        return piece

    def flush(self) -> str:
        """What is still held back, unfinished characters included; the stream starts afresh."""
        piece = self._new(self._decode(self._window)) if self._window else ""
        self._window, self._finished, self._shown = [], 0, ""
        return piece

    def _new(self, text: str) -> str:
        """What `text` has beyond the part that is out, or that now reads otherwise."""
        return text[len(commonprefix([self._shown, text])):]


def context(decode: Callable[[Sequence[int]], str], is_silent: Callable[[int], bool],
            prompt_ids: Sequence[int]) -> tuple[list[int], int]:
    """The last tokens of a prompt, and how many of them stand before an unfinished character.

    Their text neither begins nor ends amid a character: some decoders garble all bytes of a row if
    the first or the last are unfinished.
    """
    newest_first = (token_id for token_id in reversed(prompt_ids) if not is_silent(token_id))
    last = list(islice(newest_first, OVERLAP_TOKENS + MAX_HELD_TOKENS))[::-1]
    for unfinished in range(min(MAX_HELD_CHARACTERS, len(last)) + 1):
        settled = last[:len(last) - unfinished]
        for count in range(OVERLAP_TOKENS, OVERLAP_TOKENS + MAX_HELD_CHARACTERS + 1):
            text = decode(settled[-count:]) if settled else ""
            if not text.startswith(REPLACEMENT) and not text.endswith(REPLACEMENT):
                return last[-count - unfinished:], len(settled[-count:])
    return last, len(last)  # bytes that are no text, and never will be


def shown_text(decode: Callable[[Sequence[int]], str], ids: Sequence[int], finished: int) -> str:
    """The text of a prompt's tokens; only that of the finished ones where the others garble it."""
    if not ids:
        return ""
    text, settled = decode(ids), decode(ids[:finished]) if finished else ""
    return text if text.startswith(settled) else settled
