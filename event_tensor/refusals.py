"""Memory, threads and processes that the system refuses: one sentence instead of a traceback."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator
from contextlib import contextmanager

from event_tensor.errors import EventTensorError, UserError

LIMITS = "raise the limit on memory (ulimit -v, a container's limit)"
# messages of libraries that have no exception class for it
PHRASES = ("allocate memory", "out of memory", "memory allocation", "unable to allocate",
           "failed to map segment", "start new thread")


def refusal(error: BaseException | None) -> str | None:
    """What the system answered when it had no memory or no thread to give, as Python, numpy, torch
    and the dynamic loader report it, alone or behind another error; None for all other errors."""
    if error is None or isinstance(error, EventTensorError):
        return None
    if _says_so(error):
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return refusal(error.__cause__ or error.__context__)


def _says_so(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    text = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OSError, ImportError))
        and any(phrase in text for phrase in PHRASES))


def require_room(address_bytes: int, data_bytes: int) -> None:
    """Raises OSError where the system would refuse so much address space, or so much of it to
    write to. For what comes next when that is a library in C++, which ends the process without a
    word when memory is refused."""
    if hasattr(mmap, "MAP_PRIVATE"):
        for size, prot in ((address_bytes, mmap.PROT_READ),
                           (data_bytes, mmap.PROT_READ | mmap.PROT_WRITE)):
            mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=prot).close()


@contextmanager
def reserving(what: str, remedy: str = LIMITS) -> Iterator[None]:
    """Raises UserError where the system refuses what is asked for inside."""
    try:
        yield
    except Exception as error:
        if refusal(error) is None:
            raise
        raise UserError(f"there is no memory for {what}; {remedy}") from error


def gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:,.{0 if num_bytes >= 1e11 else 2}f} GB"
