"""What the KV cache holds of each slot's tokens: a next prompt computes only what is new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from frontend.decode.generation import Generation
from frontend.graph.control import Control
from persistent_runtime.rows import layout


class PrefixMemory:
    """Per slot the tokens whose keys and values the cache holds, from position 0 on."""

    def __init__(self, slots: int) -> None:
        self._cached: list[list[int]] = [[] for _ in range(slots)]

    def claim(self, slot: int, ids: list[int], *, reuse: bool) -> int:
        """Leading positions of a prompt that the cache has and a launch may leave alone; at least
        one token must be computed. Until the launch has shown what it computed, they are all that
        the cache holds."""
        cached = 0
        if reuse:
            held = self._cached[slot]
            same = next((k for k, (a, b) in enumerate(zip(held, ids, strict=False)) if a != b),
                        min(len(held), len(ids)))
            cached = min(same, len(ids) - 1)
        self._cached[slot] = ids[:cached]
        return cached

    def forget(self, slot: int) -> None:
        self._cached[slot] = []

    def remember(self, control: Control[Any], results: Sequence[Generation]) -> None:
        """After a launch, from its control tensors: the cache holds all positions before a
        request's last token."""
        for slot, result in enumerate(results):
            length = int(control.length[slot])
            if control.finished[slot] == layout.NOT_FINITE:
                self.forget(slot)  # of what it holds, nobody knows what is a number
            elif length > len(result.prompt_ids):  # else prefill may not have ended
                self._cached[slot] = control.token_ids[slot, :length - 1].tolist()
