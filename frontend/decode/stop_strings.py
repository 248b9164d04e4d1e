"""Stop strings: text is held back while it may be the beginning of one, and cut before one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

from event_tensor.errors import UserError


def check_stop_strings(strings: Sequence[str]) -> None:
    """Raises UserError for an empty string, and for what is no text."""
    if isinstance(strings, str) or any(not isinstance(s, str) or not s for s in strings):
        raise UserError("stop strings must be a list of texts, none of them empty; leave out "
                        "the empty one")


class StopFilter:
    """Passes a stream of text on up to the first stop string.

    >>> stop = StopFilter(["END"])
    >>> [stop.push("a E"), stop.push("N"), stop.push("x"), stop.push(" END of it"), stop.stopped]
    ['a ', '', 'ENx', ' ', True]

    A stop string may have special tokens in it, which are matched and not passed on:

    >>> stop = StopFilter(["<end>\\nuser"])
    >>> [stop.push("a"), stop.push("", "<end>"), stop.push("\\nus"), stop.push("age")]
    ['a', '', '', '\\nusage']
    """

    def __init__(self, strings: Sequence[str]) -> None:
        """Raises UserError for an empty string."""
        check_stop_strings(strings)
        self._strings = tuple(strings)
        self._held = ""
        self._is_shown: list[bool] = []  # per character that is held
        self.stopped = False

    def push(self, shown: str, matched: str | None = None) -> str:
        """The text that may be shown now.

        matched: `shown` with special tokens before it. Where the two differ otherwise, amid bytes
        that are no text, `shown` counts.
        """
        if self.stopped:
            return ""
        if matched is None or not matched.endswith(shown):
            matched = shown
        text = self._held + matched
        is_shown = [*self._is_shown, *(k >= len(matched) - len(shown) for k in range(len(matched)))]
        found = [at for s in self._strings if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held, self._is_shown = True, "", []
            return "".join(compress(text[:min(found)], is_shown))
        held = max((k for s in self._strings for k in range(1, min(len(s), len(text) + 1))
                    if text.endswith(s[:k])), default=0)
        passed = len(text) - held
        self._held, self._is_shown = text[passed:], is_shown[passed:]
        return "".join(compress(text[:passed], is_shown))

    def flush(self) -> str:
        """What was held back and turned out to be text."""
        text = "".join(compress(self._held, self._is_shown))
        self._held, self._is_shown = "", []
        return text
