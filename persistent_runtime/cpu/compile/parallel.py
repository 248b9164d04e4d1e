"""Many functions compiled at once, by processes that leave them in the disk cache.

numba holds a lock while it compiles, so threads would take turns; and nothing interrupts it, so
Ctrl-C would have to wait. Where a start finds functions in no cache it forks helpers, who take them
from queues, and loads what they have made. A helper is never relied on: what the helpers have
not made when they are gone, this process compiles by itself.

Bodies of one file share functions, which a helper compiles once: it stays with a file's entries.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import os
import select
import signal
import struct
import sys
import termios
import time
import warnings
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress

from numba.core.compiler_lock import global_compiler_lock

from persistent_runtime.cache.files import is_believed, write_problem
from persistent_runtime.cpu.compile.disk_cache import FUNCTIONS
from persistent_runtime.cpu.compile.registry import (
    CompiledBody,
    Elsewhere,
    Entry,
    compile_entry,
    compiling,
    open_cache,
)
from persistent_runtime.cpu.jit import interrupt_deferred
from persistent_runtime.launch.countdown import Countdown
from persistent_runtime.launch.launch import Progress

LONGEST_S = 120.0  # that helpers may take for the next function
LIBC = ctypes.CDLL(None)  # opened here: a forked process might wait for a lock for ever
PR_SET_PDEATHSIG = 1  # the signal that a process gets when its parent ends
MESSAGE = struct.Struct("=Bd")  # number of an entry, seconds that it took
MOST_ENTRIES = 256  # numbers are bytes


def compile_entries(entries: Sequence[Entry], processes: int, progress: Progress | None = None
                    ) -> list[CompiledBody]:
    """The C functions of all entries, in their order; those of one key are one. processes: that may
    compile at once."""
    different = list({entry.key: entry for entry in entries}.values())
    for done, _ in enumerate(_as_compiled(different, processes), start=1):
        if progress:
            progress(done, len(different))
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
    new = [entry for entry in entries if not entry.is_compiled and entry.can_be_kept]
    if not new:
        return []
    folder, _ = open_cache()
    missing = [entry for entry in new if not is_believed(entry.file_in(folder))][:MOST_ENTRIES]
    return missing if missing and not write_problem(folder) else []


def _groups(entries: Sequence[Entry]) -> list[bytes]:
    """Numbers of entries, those of one file together."""
    groups: dict[str, list[int]] = {}
    for number, entry in enumerate(entries):
        groups.setdefault(entry.function.__module__, []).append(number)
    return [bytes(numbers) for numbers in groups.values()]


def _taken(unclaimed: int, queues: Sequence[int]) -> Iterator[int]:
    """Numbers for one helper: whole groups, then what others would take longer for. The last of a
    group is left to the helper that has compiled the rest of it."""
    while group := os.read(unclaimed, 1):
        while number := os.read(queues[group[0]], 1):
            yield number[0]
    for queue in queues:
        while _bytes_in(queue) > 1 and (number := os.read(queue, 1)):
            yield number[0]


def _bytes_in(pipe: int) -> int:
    count = array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, count)
    return count[0]


class Helpers:
    """Forked processes that compile entries. Within `with`; none is left after it."""

    def __init__(self, entries: Sequence[Entry], count: int) -> None:
        self._entries, self._count = entries, count
        self._processes: list[int] = []
        self._pipes: set[int] = set()  # ends that are open
        self._done = -1  # the one to read from

    def __enter__(self) -> Helpers:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        """As many helpers as there is room for, on a machine that has little perhaps none."""
        # held by nobody else when the process is copied: other threads are not in a helper, and
        # could not give them back there; Ctrl-C amid a fork would be lost in whoever runs then
        with compiling, global_compiler_lock, interrupt_deferred(), warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that other threads exist
            with suppress(OSError):
                groups = _groups(self._entries)
                unclaimed = self._filled_pipe(bytes(range(len(groups))))
                queues = [self._filled_pipe(group) for group in groups]
                self._done, done = self._pipe()
                parent = os.getpid()
                for _ in range(self._count):
                    process = os.fork()
                    if process == 0:
                        self._help(parent, _taken(unclaimed, queues), done)
                    self._processes.append(process)
            for end in self._pipes - {self._done}:
                self._close(end)  # so that the one that is left shows when all helpers are gone

    def _pipe(self) -> tuple[int, int]:
        ends = os.pipe()
        self._pipes |= set(ends)
        return ends

    def _filled_pipe(self, content: bytes) -> int:
        """The end to read from; whoever has read it all meets the end of the file."""
        end, filled = self._pipe()
        os.write(filled, content)
        self._close(filled)
        return end

    def _close(self, end: int) -> None:
        self._pipes.remove(end)
        os.close(end)

    def _help(self, parent: int, numbers: Iterator[int], done: int) -> None:
        """A helper's life. What goes wrong here goes wrong again where someone is told of it."""
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever waits for helpers ends them
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # or is gone without having done so
            if os.getppid() != parent:
                return
            gc.disable()  # it does not live long
            for number in numbers:
                begin_s, entry = time.monotonic(), self._entries[number]
                compile_entry(entry)
                if not is_believed(entry.file_in(FUNCTIONS.directory())):
                    break  # a full disk, say: there is no use in helping
                os.write(done, MESSAGE.pack(number, time.monotonic() - begin_s))
        finally:
            os._exit(0)

    def finished(self) -> Iterator[tuple[Entry, float]]:
        """Entries that the cache has now, each as soon as it has, and the seconds they took; ends
        when no helper is left that could bring more."""
        if not self._processes:
            return
        messages = select.poll()
        messages.register(self._done, select.POLLIN)
        for _ in self._entries:
            countdown = Countdown(LONGEST_S)
            while not messages.poll(countdown.pause_s * 1e3):
                if countdown.is_over:
                    return
            message = os.read(self._done, MESSAGE.size)
            if not message:
                return
            number, seconds = MESSAGE.unpack(message)
            yield self._entries[number], seconds

    def __exit__(self, *_: object) -> None:
        with interrupt_deferred():  # some send Ctrl-C twice
            for end in set(self._pipes):
                self._close(end)
            for process in self._processes:
                # whoever embeds this may have waited for all children
                with suppress(ProcessLookupError, ChildProcessError):
                    os.kill(process, signal.SIGKILL)
                    os.waitpid(process, 0)
