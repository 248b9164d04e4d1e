"""Memory whose neighbourhood faults, and children that say which tensor a fault was next to.

A tensor gets pages of its own between pages that nobody may touch. Its elements end where the
upper ones begin, or begin where the lower ones end; what is left over of its own pages holds a
pattern that must stay. A tensor that is only read cannot be written either.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

PAGE = mmap.PAGESIZE
GUARD_BYTES = 256 * PAGE  # on either side: an index that is off by a row of weights falls in here
PATTERN = 0xA5
PROT_NONE = 0  # which the mmap module lacks
SIDES = ("end", "begin")  # the side of a tensor on which its last byte has no neighbour
CHILD_S = 300  # after which a child counts as hanging

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Guarded:
    """A tensor in its own pages. block: the mapping, from lower to upper guard."""

    name: str
    block: mmap.mmap
    pages: int  # bytes between the guards
    first: int  # of the tensor's bytes, from the lower guard's end on
    array: np.ndarray

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data)

    def distance(self, address: int) -> str | None:
        """Where an address in this mapping lies, in words; None for those outside of it."""
        begin = self.address - self.first - GUARD_BYTES
        if not begin <= address < begin + self.pages + 2 * GUARD_BYTES:
            return None
        offset, size = address - self.address, self.array.nbytes
        if offset < 0:
            return f"{-offset} bytes before the beginning of {self.name}"
        if offset >= size:
            return f"{offset - size} bytes after the end of {self.name}"
        return f"byte {offset} of {self.name}, which is only read"

    def check_pattern(self) -> None:
        """Raises AssertionError if anything was written beside the tensor, on its own pages."""
        own = np.frombuffer(self.block, np.uint8, self.pages, GUARD_BYTES)
        beside = np.flatnonzero(own != PATTERN)
        outside = beside[(beside < self.first) | (beside >= self.first + self.array.nbytes)]
        assert not len(outside), (
            f"written {self.distance(self.address - self.first + int(outside[0]))}")


class Bracket:
    """Guarded tensors of one call. side: see SIDES."""

    def __init__(self, side: str) -> None:
        self.side = side
        self._guarded: list[Guarded] = []

    def place(self, name: str, values: np.ndarray, is_written: bool = True) -> np.ndarray:
        """A copy of `values` between guards."""
        pages = max(-(-values.nbytes // PAGE), 1) * PAGE
        block = mmap.mmap(-1, pages + 2 * GUARD_BYTES)
        first = pages - values.nbytes if self.side == "end" else 0
        np.frombuffer(block, np.uint8, pages, GUARD_BYTES)[:] = PATTERN
        array = np.frombuffer(block, values.dtype, values.size,
                              GUARD_BYTES + first).reshape(values.shape)
        array[...] = values
        guarded = Guarded(name, block, pages, first, array)
        lower = guarded.address - first - GUARD_BYTES
        _protect(lower, GUARD_BYTES, PROT_NONE)
        _protect(lower + GUARD_BYTES + pages, GUARD_BYTES, PROT_NONE)
        if not is_written:
            _protect(lower + GUARD_BYTES, pages, mmap.PROT_READ)
        self._guarded.append(guarded)
        return array

    def check_patterns(self) -> None:
        for guarded in self._guarded:
            guarded.check_pattern()

    def describe(self, address: int) -> str:
        found = [d for d in (g.distance(address) for g in self._guarded) if d]
        return found[0] if found else f"address {address:#x}, which belongs to no tensor"


def _protect(address: int, size: int, protection: int) -> None:
    if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(size), protection):
        raise OSError(ctypes.get_errno(), "mprotect")


class _SigInfo(ctypes.Structure):
    _fields_ = [("number", ctypes.c_int), ("error", ctypes.c_int), ("code", ctypes.c_int),
                ("address", ctypes.c_void_p)]


_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.POINTER(_SigInfo), ctypes.c_void_p)


class _SigAction(ctypes.Structure):
    """As glibc has it on x86-64 and arm64."""

    _fields_ = [("handler", _HANDLER), ("mask", ctypes.c_uint64 * 16), ("flags", ctypes.c_int),
                ("restorer", ctypes.c_void_p)]


SA_SIGINFO = 4
_handlers: list[Any] = []


def report_faults(describe: Callable[[int], str], report: Any) -> None:
    """From now on a fault of this process ends it, after saying where in `report`; only on Linux,
    elsewhere it just ends. Python runs in the handler, which a process may do that ends anyway."""
    if sys.platform != "linux":
        return

    def handle(number: int, info: Any, context: Any) -> None:
        report.write(f"{signal.Signals(number).name}: {describe(info.contents.address or 0)}\n")
        report.flush()
        faulthandler.dump_traceback(report, all_threads=False)
        os._exit(1)

    faulthandler.disable()
    action = _SigAction(_HANDLER(handle), (ctypes.c_uint64 * 16)(), SA_SIGINFO, None)
    _handlers.append(action)
    for number in (signal.SIGSEGV, signal.SIGBUS):
        _libc.sigaction(int(number), ctypes.byref(action), None)


def in_child(work: Callable[[Any], None]) -> str:
    """What a forked child reports that runs `work(report)`, "" if it ends well."""
    with tempfile.TemporaryFile("w+") as report:
        child = os.fork()
        if child == 0:
            signal.alarm(CHILD_S)
            if "torch" in sys.modules:  # whose threads the child does not have
                sys.modules["torch"].set_num_threads(1)
            try:
                work(report)
            except BaseException:
                traceback.print_exc(file=report)
                report.flush()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        report.seek(0)
        told = report.read()
        if status == 0:
            return ""
        return told or f"the child ended with {signal.Signals(os.WTERMSIG(status)).name}"
