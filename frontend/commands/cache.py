"""`event-tensor cache`: what is kept on disk."""

from __future__ import annotations

from typing import Annotated

import typer

from frontend.commands.app import Json
from frontend.report.console import print_json


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove all of it.")] = False,
    clear_stale: Annotated[bool, typer.Option(
        "--clear-stale", help="Remove what this installation does not use.")] = False,
    json_output: Json = False,
) -> None:
    """Show what compiled kernels take on disk, which are in use, and clear them."""
    from frontend.report.cache import examine, show

    record = examine(clear, clear_stale)
    if json_output:
        print_json(record)
    else:
        show(record)
