"""The command `event-tensor`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from event_tensor.errors import EventTensorError, UserError
from frontend.console import (
    INTERRUPTED,
    Progress,
    exit_soon_after_interrupt,
    print_json,
    replace_unprintable,
    write_text,
)

if TYPE_CHECKING:
    from frontend.decoder import Decoder
    from frontend.generation import Generation

REFUSED = 2  # exit code: something the user gave cannot be used
FAILED = 1

app = typer.Typer(
    name="event-tensor", add_completion=False, no_args_is_help=True, rich_markup_mode=None,
    help="Compiles a language model's whole decode loop into one persistent kernel.")

FROM_MODEL = "generation_config.json, else greedy"

Model = Annotated[str, typer.Argument(
    metavar="MODEL", help="demo, demo-moe, a directory in Hugging Face layout, or a Hub id.")]
Backend = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to run.")]
Schedule = Annotated[str, typer.Option(
    metavar="auto|static|dynamic|hybrid|round_robin|unfused",
    help="How tasks come to workers: static follows the critical path; dynamic pushes them to a "
         "ready queue, hybrid only data-dependent ones; unfused puts a barrier after each "
         "operator.")]
Workers = Annotated[int | None, typer.Option(
    help="Threads of the kernel.", show_default="one per core")]
Dtype = Annotated[str, typer.Option(
    metavar="auto|float32|bfloat16|float16", help="Type of weights and KV cache; auto takes the "
    "checkpoint's.")]
MaxContext = Annotated[int | None, typer.Option(
    help="Positions of the KV cache.", show_default="the model's limit, at most 4096")]
Temperature = Annotated[float | None, typer.Option(
    help="0: always the likeliest token.", show_default=FROM_MODEL)]
TopK = Annotated[int | None, typer.Option(
    help="Draw from the k likeliest tokens; 0: from all.", show_default=FROM_MODEL)]
TopP = Annotated[float | None, typer.Option(
    help="Draw from the likeliest tokens that together have this probability.",
    show_default=FROM_MODEL)]
MinP = Annotated[float | None, typer.Option(
    help="Draw from tokens at least this likely, the likeliest counting as 1.",
    show_default=FROM_MODEL)]
RepetitionPenalty = Annotated[float | None, typer.Option(
    help="Divides the logits of tokens that have occurred; 1: none.", show_default=FROM_MODEL)]
Seed = Annotated[int | None, typer.Option(help="Of the random draws.", show_default="random")]
Stop = Annotated[list[str] | None, typer.Option(
    help="End before this text; may be given several times.")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]


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
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def compile_model(model: str, **options: Any) -> Decoder:
    """compile_decode_loop with a progress bar for whoever watches."""
    from frontend.compile import compile_decode_loop

    with Progress() as progress:
        return compile_decode_loop(model, progress=progress, **options)


def parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--prompt-ids {text!r} is not a list of integers; write it like "
                        f"1,2,3") from None


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str | None, typer.Option(help="The text to continue.")] = None,
    prompt_ids: Annotated[str | None, typer.Option(
        metavar="1,2,3", help="The token ids to continue; needs no tokenizer.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Stop after so many tokens.")] = 128,
    backend: Backend = "auto",
    schedule: Schedule = "auto",
    workers: Workers = None,
    dtype: Dtype = "auto",
    max_context: MaxContext = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    logprobs: Annotated[bool, typer.Option(
        "--logprobs", help="Record the log-probability of each token.")] = False,
    stop: Stop = None,
    ignore_eos: Annotated[bool, typer.Option(
        "--ignore-eos", help="Continue past the end-of-text token.")] = False,
    json_output: Json = False,
) -> None:
    """Continue a prompt, token by token as the kernel makes them."""
    if (prompt is None) == (prompt_ids is None):
        raise UserError("give either --prompt TEXT or --prompt-ids 1,2,3")
    given = parse_ids(prompt_ids) if prompt_ids is not None else prompt
    assert given is not None
    if given == "-":
        given = sys.stdin.read()
    options = {"max_new_tokens": max_new_tokens, "ignore_eos": ignore_eos, "stop": stop or (),
               "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
               "repetition_penalty": repetition_penalty, "seed": seed, "logprobs": logprobs}
    check_options(options)
    decoder = compile_model(model, backend=backend, schedule=schedule, workers=workers, dtype=dtype,
                            max_context=max_context)
    if json_output:
        result = decoder.generate(given, **options)
    else:
        result = stream_to_stdout(decoder, given, options)
    record = generation_record(decoder, result)
    if json_output:
        print_json(record)
    else:
        print(summary_line(record), file=sys.stderr)


@app.command()
def chat(
    model: Model,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(
        help="Cut an answer after so many tokens.", show_default="1024")] = None,
    backend: Backend = "auto",
    schedule: Schedule = "auto",
    workers: Workers = None,
    dtype: Dtype = "auto",
    max_context: MaxContext = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    stop: Stop = None,
) -> None:
    """Talk to a model; /stats, /reset and /quit, Ctrl-C ends an answer, Ctrl-D the chat."""
    from frontend.chat import chat_on_terminal
    from frontend.chat_template import load_chat_template
    from frontend.resolve import resolve_model

    options = {"max_new_tokens": max_new_tokens, "stop": stop or (), "temperature": temperature,
               "top_k": top_k, "top_p": top_p, "min_p": min_p,
               "repetition_penalty": repetition_penalty, "seed": seed}
    check_options(options)
    load_chat_template(resolve_model(model))  # a model without one is refused before it is compiled
    decoder = compile_model(model, backend=backend, schedule=schedule, workers=workers, dtype=dtype,
                            max_context=max_context)
    chat_on_terminal(decoder.chat(system), options)


def check_options(options: dict[str, Any]) -> None:
    """Refuses what no model could make right, before one is loaded."""
    from frontend.sampling import Sampling
    from frontend.stop_strings import StopFilter

    names = {field.name for field in fields(Sampling)}
    Sampling().with_options({name: value for name, value in options.items() if name in names})
    StopFilter(options["stop"])


def stream_to_stdout(decoder: Decoder, prompt: str | list[int], options: dict[str, Any]
                     ) -> Generation:
    """Writes text as it comes; token ids where the model has no tokenizer."""
    from frontend.generation import Generation

    result = Generation([])
    stream = decoder.stream(prompt, result=result, **options)
    with closing(stream):  # ends the launch, also after Ctrl-C or a closed pipe
        try:
            for token in stream:
                sys.stdout.write(token.text if decoder.tokenizer else f"{token.id} ")
                sys.stdout.flush()
        finally:
            print(flush=True)
    return result


def generation_record(decoder: Decoder, result: Generation) -> dict[str, Any]:
    """The JSON contract of `generate`."""
    return {
        "prompt_ids": result.prompt_ids, "output_ids": result.output_ids, "text": result.text,
        "ttft_ms": round(result.ttft_ms, 4), "tpot_ms": result.tpot_ms,
        "tokens_per_second": round(result.tokens_per_second, 2), "backend": decoder.backend,
        "schedule": decoder.schedule_name, "workers": decoder.num_workers,
        "launches": result.launches, "compilations": decoder.compilations,
        "finish_reason": result.finish_reason, "sampling": result.sampling.summary(),
        **({"logprobs": result.logprobs} if result.logprobs is not None else {})}


def summary_line(record: dict[str, Any]) -> str:
    tpot = record["tpot_ms"]
    return ", ".join([
        f"TTFT {record['ttft_ms']:.1f} ms", *([f"TPOT p50 {tpot['p50']:.2f} ms"] if tpot else []),
        f"{record['tokens_per_second']:.1f} tok/s", f"{record['backend']} backend",
        f"{record['schedule']} schedule", f"{record['workers']} workers",
        *(f"{name} {value}" for name, value in record["sampling"].items()
          if record["sampling"]["temperature"])])


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
    max_context: MaxContext = None,
    json_output: Json = False,
) -> None:
    """Show the decode step: its graph, its schedule, or the compiled kernel."""
    from frontend.inspection import VIEWS
    from frontend.schedule_picture import layer_picture

    if what not in VIEWS:
        raise UserError(f"--what {what} is unknown; use one of {', '.join(VIEWS)}")
    decoder = compile_model(model, schedule=schedule, workers=workers, dtype=dtype,
                            max_context=max_context)
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
    json_output: Json = False,
) -> None:
    """Record a timeline of the real kernel, task by task and worker by worker."""
    from pathlib import Path

    from frontend.trace_command import TraceOptions, run_trace, show, show_cost

    if output is None and not (summary or json_output):
        raise UserError("give -o FILE.json.gz to write the timeline, --summary, or both")
    options = TraceOptions(model, Path(output) if output else None, prompt_tokens, steps, rounds,
                           backend, schedule, workers, dtype)
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
    max_context: MaxContext = None,
    slow: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
    json_output: Json = False,
) -> None:
    """Start twice, with nothing compiled and with a warm cache, and show where the time went."""
    from frontend.warmup_command import WarmupOptions, check_strict, run_warmup, show

    compile_options = {"backend": backend, "schedule": schedule, "workers": workers, "dtype": dtype,
                       "max_context": max_context}
    delays = {name: float(seconds) for name, _, seconds in (s.rpartition("=") for s in slow or [])}
    record = run_warmup(WarmupOptions(model, prompt_tokens, compile_options, delays))
    if html is not None:
        from frontend.warmup_page import page

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
    from frontend.cache_command import examine, show

    record = examine(clear, clear_stale)
    if json_output:
        print_json(record)
    else:
        show(record)


@app.command()
def doctor(json_output: Json = False) -> None:
    """Check this machine: versions, processor, caches, and a generation against transformers."""
    from frontend.doctor import examine, show

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
    schedule: Schedule = "auto",
    seed: Annotated[int, typer.Option(
        help="Of the prompt, the draws and the order of turns.")] = 0,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    json_output: Json = False,
) -> None:
    """Measure TTFT, TPOT and bandwidth, beside the correctness of the same build."""
    from frontend.bench import BenchOptions, run_bench
    from frontend.bench_table import show, to_markdown

    options = BenchOptions(
        model, prompt_tokens, new_tokens, depth, repeats, workers, backend, dtype, schedule, seed,
        sampled, tuple(name for name in compare.split(",") if name))
    with Progress() as progress:
        record = run_bench(options, progress)
    if json_output:
        print_json(record)
    elif markdown:
        print(to_markdown(record))
    else:
        show(record)
