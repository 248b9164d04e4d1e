"""`event-tensor warmup`: where a start went."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from frontend.commands.app import CompileOptions, Json, Model
from frontend.report.console import print_json, write_text


def warmup(
    model: Model,
    *,
    prompt_tokens: Annotated[int, typer.Option(help="Random tokens to read.")] = 32,
    html: Annotated[str | None, typer.Option(
        metavar="FILE", help="Write the report as one page with pictures.")] = None,
    strict: Annotated[bool, typer.Option(
        "--strict", help="Fail if anything is compiled after the first token.")] = False,
    compile_options: CompileOptions,
    compare: Annotated[str, typer.Option(
        metavar="transformers,torch-compile,cuda-graph",
        help="Start these as well, in the same way.")] = "",
    json_output: Json = False,
) -> None:
    """Start twice, with nothing compiled and with a warm cache, and show where the time went."""
    from frontend.report.warmup.runs import WarmupOptions, check_strict, run_warmup, show

    record = run_warmup(WarmupOptions(model, prompt_tokens, asdict(compile_options),
                                      tuple(name for name in compare.split(",") if name)))
    if html is not None:
        from frontend.report.warmup.page import page

        write_text(html, page(record), "--html")
    if json_output:
        print_json(record)
    elif html is None:
        show(record)
    if strict:
        check_strict(record)
