"""What this process has compiled or found compiled, by whichever backend."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Compilation:
    """One line of the warm-up report. note: what was wrong with the cache; reason: why there was
    no hit; begin_s: on the clock of time.monotonic; elsewhere_s: what it took in another process,
    while this one waited for `seconds`."""

    function: str
    dtype: str  # formats of the weights and caches it reads, or of all it has
    cache_hit: bool
    seconds: float
    note: str = ""
    reason: str = ""
    begin_s: float = 0.0
    elsewhere_s: float = 0.0


COMPILATIONS: list[Compilation] = []  # of this process, in order
