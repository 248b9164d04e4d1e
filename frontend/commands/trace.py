"""`event-tensor trace`: a timeline of the real kernel."""

from __future__ import annotations

from typing import Annotated

import typer

from event_tensor.errors import UserError
from frontend.commands.app import Backend, Dtype, Json, KvDtype, Model, Schedule, Workers
from frontend.report.console import ProgressBar, print_json


def trace(
    model: Model,
    output: Annotated[str | None, typer.Option(
        "--output", "-o", metavar="FILE.json.gz", help="Where to write the timeline, in Chrome's "
        "trace-event format.")] = None,
    summary: Annotated[bool, typer.Option(
        "--summary", help="Print where a decode step went.")] = False,
    prompt_tokens: Annotated[int, typer.Option(help="Random tokens to read.")] = 32,
    steps: Annotated[int, typer.Option(help="Decode steps to trace.")] = 8,
    rounds: Annotated[int, typer.Option(
        help="Runs with and without a trace, to tell what tracing costs.")] = 5,
    backend: Backend = "auto",
    schedule: Schedule = "auto",
    workers: Workers = None,
    dtype: Dtype = "auto",
    kv_dtype: KvDtype = "auto",
    json_output: Json = False,
) -> None:
    """Record a timeline of the real kernel, task by task and worker by worker."""
    from pathlib import Path

    from frontend.report.trace import TraceOptions, run_trace, show, show_cost

    if output is None and not (summary or json_output):
        raise UserError("give -o FILE.json.gz to write the timeline, --summary, or both")
    options = TraceOptions(model, Path(output) if output else None, prompt_tokens, steps, rounds,
                           backend, schedule, workers, dtype, kv_dtype)
    with ProgressBar() as progress:
        record = run_trace(options, progress)
    if json_output:
        print_json(record)
    else:
        if summary:
            show(record)
        show_cost(record)
