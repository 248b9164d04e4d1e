"""What the commands print: tables, one JSON object, and progress where someone is watching."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from event_tensor.errors import UserError

INTERRUPTED = 130  # what a shell reports for a command that Ctrl-C ended
GRACE_S = 0.35  # from Ctrl-C to the end, whatever native code is running
CLEAR_LINE, SHOW_CURSOR = b"\r\x1b[2K", b"\x1b[?25h"
FILE_WIDTH = 200  # of a table that no terminal limits
SILENT_S = 0.7  # start-up shorter than this needs no progress bar
Record = dict[str, Any]  # what becomes a JSON object


def speed_words(ttft_ms: float, tpot_ms: dict[str, float] | None, tokens_per_second: float
                ) -> list[str]:
    """Of one generation; tpot_ms: percentiles, None for a single token."""
    return [f"TTFT {ttft_ms:.1f} ms", *([f"TPOT p50 {tpot_ms['p50']:.2f} ms"] if tpot_ms else []),
            f"{tokens_per_second:.1f} tok/s"]


def print_json(record: Record) -> None:
    """Exactly one JSON object on stdout, in ASCII, so that any terminal encoding takes it. JSON has
    no NaN and no infinity: what is no finite number becomes null."""
    print(json.dumps(finite(record), allow_nan=False))


def finite(value: Any) -> Any:
    """The same dictionaries and lists, with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """In the place of `warnings.showwarning`, which names a line of our source."""
    print(f"warning: {message}", file=sys.stderr)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """The first column is text, the others are figures."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
    console.print(Text(title))
    console.print(table)


def write_text(file: str, text: str, option: str) -> None:
    """Raises UserError where the file that `option` names cannot be written."""
    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}; give another file to {option}"
                        ) from None


def exit_soon_after_interrupt() -> None:
    """A second way out after Ctrl-C: the interpreter notices a signal only between two steps of
    its own, and a compiler or a library's import may keep it from taking one for seconds.

    `stay_after_interrupt` lifts it, for a command that outlives Ctrl-C.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while os.read(reader, 1) != bytes([signal.SIGINT]):
            pass
        time.sleep(GRACE_S)
        if sys.stderr.isatty():  # a progress bar may stand there, and hides the cursor
            os.write(sys.stderr.fileno(), CLEAR_LINE + SHOW_CURSOR)
        os._exit(INTERRUPTED)

    with suppress(RuntimeError):  # no thread to be had: the interpreter's own way out must do
        threading.Thread(target=watch, name="interrupt", daemon=True).start()


def stay_after_interrupt() -> None:
    signal.set_wakeup_fd(-1)


class ProgressBar:
    """A progress bar on stderr, shown only to a terminal and only if there is time to read it."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._watched = sys.stderr.isatty()
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if not self._watched or (time.monotonic() - self._begin < SILENT_S and self._bar is None):
            return
        if self._bar is None:
            import rich.progress
            from rich.console import Console

            self._bar = rich.progress.Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
        if phase not in self._tasks:
            self._tasks[phase] = self._bar.add_task(phase, total=total)
        self._bar.update(self._tasks[phase], completed=done)
