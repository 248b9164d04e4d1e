"""`event-tensor inspect`: the decode step from inside."""

from __future__ import annotations

from typing import Annotated

import typer

from event_tensor.errors import UserError
from frontend.commands.app import (
    CompileOptions,
    Dtype,
    Json,
    KvDtype,
    MaxContext,
    Model,
    Schedule,
    Workers,
    compile_model,
)
from frontend.report.console import print_json, write_text


def inspect_model(
    model: Model,
    what: Annotated[str, typer.Option(metavar="graph|schedule|kernel",
                                      help="Which view of the decode step.")] = "schedule",
    svg: Annotated[str | None, typer.Option(
        metavar="FILE", help="Draw a layer: workers over time, by device function.")] = None,
    layer: Annotated[int | None, typer.Option(
        help="Which layer to draw.", show_default="the middle one")] = None,
    measured: Annotated[bool, typer.Option(
        "--measured", help="Draw a traced run instead of the simulator's estimate.")] = False,
    schedule: Schedule = "auto",
    workers: Workers = None,
    dtype: Dtype = "auto",
    kv_dtype: KvDtype = "auto",
    max_context: MaxContext = None,
    json_output: Json = False,
) -> None:
    """Show the decode step: its graph, its schedule, or the compiled kernel."""
    from frontend.report.inspection import VIEWS
    from frontend.report.schedule_picture import layer_picture

    if what not in VIEWS:
        raise UserError(f"--what {what} is unknown; use one of {', '.join(VIEWS)}")
    decoder = compile_model(model, CompileOptions(
        schedule=schedule, workers=workers, dtype=dtype, kv_dtype=kv_dtype,
        max_context=max_context))
    record_of, show = VIEWS[what]
    record = {"what": what, "model": model, **record_of(decoder)}
    if svg is not None:
        write_text(svg, layer_picture(decoder, layer, measured), "--svg")
    if json_output:
        print_json(record)
    else:
        show(record)
