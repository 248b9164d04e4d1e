"""Commands that tell about a model or a machine: inspect, trace, warmup, bench, cache, doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from event_tensor.errors import UserError
from frontend.commands.app import (
    Backend,
    Dtype,
    Json,
    KvDtype,
    MaxContext,
    Model,
    Schedule,
    Workers,
    app,
    compile_model,
)
from frontend.report.console import Progress, print_json, write_text

FAILED = 1  # exit code of a check that did not pass


@app.command(name="inspect")
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
    decoder = compile_model(model, schedule=schedule, workers=workers, dtype=dtype,
                            kv_dtype=kv_dtype, max_context=max_context)
    record_of, show = VIEWS[what]
    record = {"what": what, "model": model, **record_of(decoder)}
    if svg is not None:
        write_text(svg, layer_picture(decoder, layer, measured), "--svg")
    if json_output:
        print_json(record)
    else:
        show(record)


@app.command()
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
    with Progress() as progress:
        record = run_trace(options, progress)
    if json_output:
        print_json(record)
    else:
        if summary:
            show(record)
        show_cost(record)


@app.command()
def warmup(
    model: Model,
    prompt_tokens: Annotated[int, typer.Option(help="Random tokens to read.")] = 32,
    html: Annotated[str | None, typer.Option(
        metavar="FILE", help="Write the report as one page with pictures.")] = None,
    strict: Annotated[bool, typer.Option(
        "--strict", help="Fail if anything is compiled after the first token.")] = False,
    backend: Backend = "auto",
    schedule: Schedule = "auto",
    workers: Workers = None,
    dtype: Dtype = "auto",
    kv_dtype: KvDtype = "auto",
    max_context: MaxContext = None,
    compare: Annotated[str, typer.Option(
        metavar="transformers,torch-compile,cuda-graph",
        help="Start these as well, in the same way.")] = "",
    slow: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    json_output: Json = False,
) -> None:
    """Start twice, with nothing compiled and with a warm cache, and show where the time went."""
    from frontend.report.warmup.runs import WarmupOptions, check_strict, run_warmup, show

    compile_options = {"backend": backend, "schedule": schedule, "workers": workers, "dtype": dtype,
                       "kv_dtype": kv_dtype, "max_context": max_context}
    delays = {name: float(seconds) for name, _, seconds in (s.rpartition("=") for s in slow or [])}
    record = run_warmup(WarmupOptions(model, prompt_tokens, compile_options, delays,
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


@app.command()
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


@app.command()
def doctor(json_output: Json = False) -> None:
    """Check this machine: versions, processor, caches, and a generation against transformers."""
    from frontend.report.doctor import examine, show

    with Progress() as progress:
        record = examine(progress)
    if json_output:
        print_json(record)
    else:
        show(record)
    if not record["passed"]:
        raise typer.Exit(FAILED)


@app.command()
def bench(
    model: Model,
    prompt_tokens: Annotated[int, typer.Option(help="Random tokens to read (pp).")] = 128,
    new_tokens: Annotated[int, typer.Option(help="Tokens to generate (tg).")] = 128,
    depth: Annotated[int, typer.Option(
        help="Random tokens that the KV cache holds before the prompt (@ d).")] = 0,
    repeats: Annotated[int, typer.Option(help="Rounds; sides take turns in each.")] = 5,
    sampled: Annotated[bool, typer.Option(
        "--sampled", help="Measure temperature 0.8, top-k 50, top-p 0.95 beside greedy.")] = False,
    compare: Annotated[str, typer.Option(
        metavar="transformers,torch-compile,llama-cpp,cuda-graph",
        help="Measure these as well, in the same rounds.")] = "",
    backend: Backend = "auto",
    workers: Workers = None,
    dtype: Dtype = "auto",
    kv_dtype: KvDtype = "auto",
    schedule: Schedule = "auto",
    seed: Annotated[int, typer.Option(
        help="Of the prompt, the draws and the order of turns.")] = 0,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    json_output: Json = False,
) -> None:
    """Measure TTFT, TPOT and bandwidth, beside the correctness of the same build."""
    from frontend.report.bench.run import BenchOptions, run_bench
    from frontend.report.bench.table import show, to_markdown

    options = BenchOptions(
        model, prompt_tokens, new_tokens, depth, repeats, workers, backend, dtype, schedule, seed,
        sampled, tuple(name for name in compare.split(",") if name), kv_dtype)
    with Progress() as progress:
        record = run_bench(options, progress)
    if json_output:
        print_json(record)
    elif markdown:
        print(to_markdown(record))
    else:
        show(record)
