"""The command `event-tensor`: exit codes and the end of the process; commands/ has the rest."""

from __future__ import annotations

import os
import sys

from event_tensor.errors import EventTensorError
from event_tensor.refusals import LIMITS, refusal
from frontend.commands import generate, reports
from frontend.commands.app import app
from frontend.console import INTERRUPTED, exit_soon_after_interrupt, replace_unprintable

__all__ = ["generate", "main", "reports", "run"]  # importing the commands registers them

REFUSED = 2  # exit code: something the user gave cannot be used


def main() -> None:
    """Entry point of the command."""
    replace_unprintable()
    exit_soon_after_interrupt()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads any more
        pass
    # taking torch and LLVM apart piece by piece takes the interpreter longer than a second
    os._exit(code)


def run(arguments: list[str]) -> int:
    """The exit code. Every error that a person can act on becomes one line on stderr."""
    try:
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
