"""Many functions compiled at once, by processes that leave them in the disk cache.

numba holds a lock while it compiles, so threads would take turns; and nothing interrupts it, so
Ctrl-C would have to wait. Where a start finds functions in no cache it forks helpers, who take them
from one queue, and loads what they have made. A helper is never relied on: what the helpers have
not made when they are gone, this process compiles by itself.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

from numba.core.compiler_lock import global_compiler_lock

from persistent_runtime.cpu.jit import interrupt_deferred
from persistent_runtime.cpu.registry import (
    CompiledBody,
    Elsewhere,
    Entry,
    compile_entry,
    open_cache,
)

Progress = Callable[[int, int], None]
LONGEST_S = 120.0  # that helpers may take for the next function
MESSAGE = struct.Struct("=Bd")  # number of an entry, seconds that it took
MOST_ENTRIES = 256  # numbers are bytes


def compile_entries(entries: Sequence[Entry], processes: int, progress: Progress | None = None
                    ) -> list[CompiledBody]:
    """The C functions of all entries, in their order. processes: that may compile at once."""
    for done, _ in enumerate(_as_compiled(entries, processes), start=1):
        if progress:
            progress(done, len(entries))
    return [compile_entry(entry) for entry in entries]


def _as_compiled(entries: Sequence[Entry], processes: int) -> Iterator[CompiledBody]:
    missing = _missing(entries)
    for entry in entries:
        if entry not in missing:
            yield compile_entry(entry)
    if not missing:
        return
    with Helpers(missing, min(processes, len(missing))) as helpers:
        since_s = time.monotonic()
        for entry, seconds in helpers.finished():
            yield compile_entry(entry, Elsewhere(since_s, seconds))
            since_s = time.monotonic()
    for entry in missing:
        if not entry.is_compiled:
            yield compile_entry(entry)


def _missing(entries: Sequence[Entry]) -> list[Entry]:
    """Those that neither this process nor a cache has, where there is a cache to leave them in."""
    if sys.platform != "linux":  # elsewhere a fork of a process with threads is not safe
        return []
    try:
        open_cache()
    except OSError:
        return []
    missing = [e for e in entries if not e.is_compiled and not e.file.exists()]
    return missing[:MOST_ENTRIES]


class Helpers:
    """Forked processes that compile entries. Within `with`; none is left after it."""

    def __init__(self, entries: Sequence[Entry], count: int) -> None:
        self._entries, self._count = entries, count
        self._processes: list[int] = []

    def __enter__(self) -> Helpers:
        queue, filled = os.pipe()
        self._done, done = os.pipe()
        os.write(filled, bytes(range(len(self._entries))))
        os.close(filled)
        with global_compiler_lock, warnings.catch_warnings():
            # other threads do not compile now, and helpers do nothing else
            warnings.simplefilter("ignore", DeprecationWarning)
            for _ in range(self._count):
                process = os.fork()
                if process == 0:
                    self._help(queue, done)
                self._processes.append(process)
        os.close(queue)
        os.close(done)  # so that the other end shows when the last helper is gone
        return self

    def _help(self, queue: int, done: int) -> None:
        """A helper's life. What goes wrong here goes wrong again where someone is told of it."""
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever waits for helpers ends them
            while number := os.read(queue, 1):
                begin_s = time.monotonic()
                compile_entry(self._entries[number[0]])
                os.write(done, MESSAGE.pack(number[0], time.monotonic() - begin_s))
        finally:
            os._exit(0)

    def finished(self) -> Iterator[tuple[Entry, float]]:
        """Entries that the cache has now, each as soon as it has, and the seconds they took; ends
        when no helper is left that could bring more."""
        while select.select([self._done], [], [], LONGEST_S)[0]:
            message = os.read(self._done, MESSAGE.size)
            if not message:
                return
            number, seconds = MESSAGE.unpack(message)
            yield self._entries[number], seconds

    def __exit__(self, *_: object) -> None:
        os.close(self._done)
        with interrupt_deferred():  # some send Ctrl-C twice
            for process in self._processes:
                # whoever embeds this may have waited for all children
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, 0)
