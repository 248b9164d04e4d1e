"""What is still compiled once a decoder is ready: nothing should be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from persistent_runtime.cache.compilations import COMPILATIONS


@contextmanager
def compilations() -> Iterator[list[str]]:
    """Names of all that is compiled inside, by numba itself or by a backend."""
    names: list[str] = []
    before = len(COMPILATIONS)
    # a process that has not imported numba compiles nothing with it
    with numba_names(names) if "numba" in sys.modules else nullcontext():
        yield names
    names += [c.function for c in COMPILATIONS[before:]]


def numba_names(names: list[str]) -> AbstractContextManager[Any]:
    """Adds the name of each function that numba compiles meanwhile."""
    from numba.core import event

    class Listener(event.Listener):
        def on_start(self, event: Any) -> None:
            names.append(str(getattr(event.data["dispatcher"], "__name__", "?")))

        def on_end(self, event: Any) -> None:
            """Nothing: a compilation counts from its start."""

    installed: AbstractContextManager[Any] = event.install_listener("numba:compile", Listener())
    return installed
