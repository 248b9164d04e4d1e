"""`event-tensor doctor`: whether this machine is fit."""

from __future__ import annotations

import typer

from frontend.commands.app import Json
from frontend.report.console import ProgressBar, print_json

FAILED = 1  # exit code of a check that did not pass


def doctor(json_output: Json = False) -> None:
    """Check this machine: versions, processor, caches, and a generation against transformers."""
    from frontend.report.doctor import examine, show

    with ProgressBar() as progress:
        record = examine(progress)
    if json_output:
        print_json(record)
    else:
        show(record)
    if not record["passed"]:
        raise typer.Exit(FAILED)
