"""A phase of a start that takes long: what a report shows of it. As a program it is the process
that `event-tensor warmup` starts, with the phase SLOWED."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from frontend.decode.phases import Phases

SLOWED, DELAY_S = "derive events", 0.4


def slowed(slow: str, seconds: float) -> Callable[[Phases, str], object]:
    """In the place of `Phases.__call__`: it sleeps in the phase of that name."""
    book = Phases.__call__

    @contextmanager
    def slow_call(self: Phases, name: str) -> Iterator[None]:
        with book(self, name):
            if name == slow:
                time.sleep(seconds)
            yield

    return slow_call


if __name__ == "__main__":
    from frontend.report.warmup.child import main

    Phases.__call__ = slowed(SLOWED, DELAY_S)  # type: ignore[method-assign]
    sys.exit(main())
