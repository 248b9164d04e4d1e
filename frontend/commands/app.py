"""The application that commands register with, and the options that several of them have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from frontend.report.console import Progress

if TYPE_CHECKING:
    from frontend.decode.decoder import Decoder

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
    metavar="auto|float32|bfloat16|float16", help="Type of weights; auto takes the "
    "checkpoint's.")]
KvDtype = Annotated[str, typer.Option(
    metavar="auto|float32|bfloat16|float16", help="Type of the KV cache; auto takes the weights'.")]
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
EosTokenId = Annotated[str | None, typer.Option(
    metavar="1,2", help="The ids of the tokens that end the text.",
    show_default="those of the model, its tokenizer and its chat template")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]


def compile_model(model: str, **options: Any) -> Decoder:
    """compile_decode_loop with a progress bar for whoever watches."""
    from frontend.compile import compile_decode_loop

    with Progress() as progress:
        return compile_decode_loop(model, progress=progress, **options)
