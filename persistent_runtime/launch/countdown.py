"""How long the host waits for others. Time in which nobody ran does not count.

The workers' own waits follow the same rule (cpu/worker/waiting.py, gpu/worker/sync.py).
"""

from __future__ import annotations

import time

from persistent_runtime.rows import layout


class Countdown:
    """Runs down by the time between two looks at it, of which each counts at most a share: after a
    gap, in a stopped process or on a machine that slept, those waited for get another chance."""

    def __init__(self, seconds: float) -> None:
        self.left_s = seconds
        self._longest_s = seconds / layout.GAPS_PER_TIMEOUT
        self.pause_s = self._longest_s / 2  # between two looks, at most
        self._seen_s = time.monotonic()

    @property
    def is_over(self) -> bool:
        """One look."""
        now_s = time.monotonic()
        self.left_s -= min(now_s - self._seen_s, self._longest_s)
        self._seen_s = now_s
        return self.left_s < 0
