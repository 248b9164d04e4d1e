"""Where start-up went: a clock that books every moment under one name."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Span:
    """Part of a phase; seconds on the clock of time.monotonic."""

    name: str
    begin_s: float
    end_s: float


@dataclass(slots=True)
class Phases:
    """From the start of the process to the first token. Spans never overlap: a phase inside
    another one interrupts it."""

    begin_s: float = field(default_factory=lambda: process_start_s())
    spans: list[Span] = field(default_factory=list)
    end_s: float | None = None  # of the first token; nothing is recorded after it
    _open: list[str] = field(default_factory=list)
    _since_s: float = 0.0  # when the phase that runs now went on

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Books the time inside under `name`."""
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def fill(self, name: str, until_s: float | None = None) -> None:
        """Books what passed since the last span under `name`, nothing if that is later than
        `until_s`: workers may be done before the host knows that they have started. Not inside a
        phase."""
        begin_s = self.spans[-1].end_s if self.spans else self.begin_s
        self._book(name, begin_s, max(begin_s, time.monotonic() if until_s is None else until_s))

    def first_token(self, time_ns: int) -> None:
        """The first token was chosen at `time_ns`, and the host has it now: start-up is over."""
        if self.end_s is None:
            self.fill("prefill", time_ns / 1e9)
            self.fill("first token")
            self.end_s = self.spans[-1].end_s

    def end(self) -> None:
        """Start-up is over."""
        self.end_s = time.monotonic()

    @property
    def wall_s(self) -> float:
        """To the first token, or to now if it has not come."""
        return (time.monotonic() if self.end_s is None else self.end_s) - self.begin_s

    def record(self, spans: Sequence[Span]) -> dict[str, Any]:
        """`wall_s`, and per phase, in the order in which they began, its seconds, its share and
        its spans, counted from the start of the process; `unattributed` is the rest. spans:
        `self.spans`, or the same time cut finer."""
        wall_s = self.wall_s
        of_name: dict[str, list[Span]] = {}
        for span in spans:
            of_name.setdefault(span.name, []).append(span)
        seconds = {name: sum(s.end_s - s.begin_s for s in own) for name, own in of_name.items()}
        seconds["unattributed"] = wall_s - sum(seconds.values())
        return {"wall_s": round(wall_s, 6), "phases": [
            {"name": name, "seconds": round(s, 6), "share": round(s / wall_s, 5),
             "spans": [[round(t - self.begin_s, 6) for t in (span.begin_s, span.end_s)]
                       for span in of_name.get(name, ())]}
            for name, s in seconds.items()]}

    def _switch(self) -> None:
        now = time.monotonic()
        if self._open:
            self._book(self._open[-1], self._since_s, now)
        self._since_s = now

    def _book(self, name: str, begin_s: float, end_s: float) -> None:
        if self.end_s is None:
            self.spans.append(Span(name, begin_s, end_s))


def process_start_s() -> float:
    """When this process began, on the clock of time.monotonic, to a hundredth of a second; now
    where the system does not say."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return time.monotonic()
    return time.monotonic() - age_s
