"""Standard input, output and error, whatever they are: closed, full, no UTF-8, or half a terminal.

What cannot be written to standard output ends the command, with one sentence; what cannot be
written to standard error is lost, for there is nobody to tell.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from event_tensor.errors import UserError

INPUT, OUTPUT, ERRORS = range(3)  # the descriptors
# What Python could not read as text becomes a lone surrogate, which `require_text` refuses: a line
# that is not text costs neither the lines after it nor the process.
KEEP_BYTES = "surrogateescape"
REASONS = {errno.EBADF: "it is closed"}


class StreamError(Exception):
    """A standard stream that is of no more use: the command ends. Its text is a sentence; empty
    where a reader has gone, which is no mistake."""


class Output(io.FileIO):
    """Tells the failures of standard output from all others."""

    def write(self, data: Any) -> int:
        try:
            while (written := super().write(data)) is None:  # it does not block, and is full
                select.select([], [self], [])
            return written
        except ConnectionError:  # a closed pipe
            raise StreamError from None
        except OSError as error:
            raise StreamError(f"cannot write to standard output: {reason(error)}") from None


class Errors(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return len(data)


def open_streams() -> None:
    """Call this first: a file opened before could be taken for a standard stream that is closed.

    Characters that the terminal's encoding lacks come out as `?` instead of as a traceback.
    """
    # what is closed becomes a file that takes no output, or one that forgets all messages
    for descriptor, flags in ((INPUT, os.O_RDONLY), (OUTPUT, os.O_RDONLY), (ERRORS, os.O_WRONLY)):
        if not is_open(descriptor):  # the new file gets the least number that is free: this one
            os.set_inheritable(os.open(os.devnull, flags), True)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors=KEEP_BYTES)
    sys.stdout = text_stream(Output(OUTPUT, "w", closefd=False), sys.stdout)
    sys.stderr = text_stream(Errors(ERRORS, "w", closefd=False), sys.stderr)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def text_stream(file: io.FileIO, like: Any) -> io.TextIOWrapper:
    """like: the stream whose place it takes; None where Python found it closed."""
    is_prompt = like is None or like.line_buffering or like.write_through
    return io.TextIOWrapper(io.BufferedWriter(file), like.encoding if like else "utf-8", "replace",
                            line_buffering=is_prompt)


def read_input() -> str:
    """All of standard input. Raises StreamError where there is none, UserError where it is no
    text."""
    if sys.stdin is None:
        raise StreamError("cannot read standard input: it is closed")
    with reading():
        return require_text(sys.stdin.read(), "standard input", sys.stdin.encoding)


def read_line(prompt: str) -> str:
    """The next line, without its end. The prompt is for a terminal, and never mixes with answers
    that go elsewhere.

    Raises EOFError at the end, UserError for a line that is no text, StreamError.
    """
    if sys.stdin is None:
        raise EOFError
    with reading():
        if not sys.stdin.isatty():
            line = input()
        elif sys.stdout.isatty():
            line = input(prompt)
        elif sys.stderr.isatty():
            with terminal_as_output():
                line = input(prompt)
        else:
            sys.stderr.write(prompt)
            sys.stderr.flush()
            line = input()
    return require_text(line, "this line", sys.stdin.encoding)


@contextmanager
def terminal_as_output() -> Iterator[None]:
    """Standard output is where standard error goes meanwhile: a line is edited only where input and
    output are terminals, and only there."""
    sys.stdout.flush()
    kept = os.dup(OUTPUT)
    os.dup2(ERRORS, OUTPUT)
    try:
        yield
    finally:
        os.dup2(kept, OUTPUT)
        os.close(kept)


@contextmanager
def reading() -> Iterator[None]:
    try:
        yield
    except UnicodeError:  # of an encoding that gives no surrogates; where text goes on is unknown
        raise StreamError(str(not_text("standard input", sys.stdin.encoding))) from None
    except OSError as error:
        raise StreamError(f"cannot read standard input: {reason(error)}") from None


def require_text(text: str, what: str, encoding: str = "utf-8") -> str:
    """Raises UserError where Python found bytes that are not text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise not_text(what, encoding) from None
    return text


def not_text(what: str, encoding: str) -> UserError:
    name = encoding.upper()
    return UserError(f"{what} is not {name} text; convert it to {name}")


def reason(error: OSError) -> str:
    return REASONS.get(error.errno or 0) or error.strerror or str(error)
