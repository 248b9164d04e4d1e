"""The command `event-tensor`: exit codes and the end of the process; commands/ has the rest."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

from event_tensor.errors import EventTensorError
from event_tensor.refusals import LIMITS, refusal
from frontend.commands import bench, cache, chat, doctor, generate, inspect, trace, warmup
from frontend.commands.app import app, grouped
from frontend.commands.streams import StreamError, open_streams
from frontend.model_files.directories import provide_home
from frontend.report.console import INTERRUPTED, exit_soon_after_interrupt, show_warning

COMMANDS: dict[str, Callable[..., None]] = {  # in the order in which --help lists them
    "generate": generate.generate, "chat": chat.chat, "inspect": inspect.inspect_model,
    "trace": trace.trace, "warmup": warmup.warmup, "cache": cache.cache, "doctor": doctor.doctor,
    "bench": bench.bench}
for name, command in COMMANDS.items():
    app.command(name)(grouped(command))

REFUSED = 2  # exit code: something the user gave cannot be used
NOBODY_READS = 141  # what a shell reports for a command that a closed pipe ended


def main() -> None:
    """Entry point of the command."""
    open_streams()
    exit_soon_after_interrupt()
    code = run(sys.argv[1:])
    sys.stderr.flush()
    # taking torch and LLVM apart piece by piece takes the interpreter longer than a second
    os._exit(code)


def run(arguments: list[str]) -> int:
    """The exit code. Every error that a person can act on becomes one line on stderr."""
    try:
        code = run_command(arguments)
        sys.stdout.flush()
    except StreamError as error:
        if not str(error):
            return NOBODY_READS
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    return code


def run_command(arguments: list[str]) -> int:
    """The exit code. Raises StreamError."""
    try:
        provide_home()
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            app(arguments, prog_name="event-tensor")
    except EventTensorError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        answer = refusal(error)
        if answer is None:
            raise
        print(f"error: there is no memory left ({answer}); {LIMITS}", file=sys.stderr)
        return REFUSED
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0
