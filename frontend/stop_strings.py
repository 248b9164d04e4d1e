"""Stop strings: text is held back while it may be the beginning of one, and cut before one."""

from __future__ import annotations

from collections.abc import Sequence

from event_tensor.errors import UserError


class StopFilter:
    """Passes a stream of text on up to the first stop string.

    >>> stop = StopFilter(["END"])
    >>> [stop.push("a E"), stop.push("N"), stop.push("x"), stop.push(" END of it"), stop.stopped]
    ['a ', '', 'ENx', ' ', True]
    """

    def __init__(self, strings: Sequence[str]) -> None:
        """Raises UserError for an empty string."""
        if isinstance(strings, str) or any(not isinstance(s, str) or not s for s in strings):
            raise UserError("stop strings must be a list of texts, none of them empty; leave out "
                            "the empty one")
        self._strings = tuple(strings)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that may be shown now."""
        if self.stopped:
            return ""
        text = self._held + piece
        found = [at for s in self._strings if (at := text.find(s)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[:min(found)]
        held = max((k for s in self._strings for k in range(1, min(len(s), len(text) + 1))
                    if text.endswith(s[:k])), default=0)
        self._held = text[len(text) - held:]
        return text[:len(text) - held]

    def flush(self) -> str:
        """What was held back and turned out to be text."""
        text, self._held = self._held, ""
        return text
