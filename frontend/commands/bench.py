"""`event-tensor bench`: speed beside correctness."""

from __future__ import annotations

from typing import Annotated

import typer

from frontend.commands.app import Backend, Dtype, Json, KvDtype, Model, Schedule, Workers
from frontend.report.console import ProgressBar, print_json


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
    with ProgressBar() as progress:
        record = run_bench(options, progress)
    if json_output:
        print_json(record)
    elif markdown:
        print(to_markdown(record))
    else:
        show(record)
