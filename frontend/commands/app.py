"""The application, and what several of its commands have: options of the kernel, groups of options.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from event_tensor import __version__
from frontend.report.console import ProgressBar
from scheduling.names import SCHEDULES

if TYPE_CHECKING:
    from frontend.decode.decoder import Decoder

app = typer.Typer(
    name="event-tensor", add_completion=False, no_args_is_help=True, rich_markup_mode=None,
    help="Compiles a language model's whole decode loop into one persistent kernel.")

Model = Annotated[str, typer.Argument(
    metavar="MODEL", help="demo, demo-moe, a directory in Hugging Face layout, or a Hub id.")]
Backend = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to run.")]
Schedule = Annotated[str, typer.Option(
    metavar="|".join(SCHEDULES),
    help="How tasks come to workers: "
         + "; ".join(f"{name} {each.does}" for name, each in SCHEDULES.items()) + ".")]
Workers = Annotated[int | None, typer.Option(
    help="Threads of the kernel.", show_default="one per core")]
Dtype = Annotated[str, typer.Option(
    metavar="auto|float32|bfloat16|float16", help="Type of weights; auto takes the "
    "checkpoint's.")]
KvDtype = Annotated[str, typer.Option(
    metavar="auto|float32|bfloat16|float16", help="Type of the KV cache; auto takes the weights'.")]
MaxContext = Annotated[int | None, typer.Option(
    help="Positions of the KV cache.", show_default="the model's limit, at most 4096")]
Json = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object.")]


def print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def options_of_all_commands(version: Annotated[bool, typer.Option(
        "--version", is_eager=True, callback=print_version,
        help="Print the version and end.")] = False) -> None:
    """What stands before the command's name."""


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """Options of compile_decode_loop."""

    backend: Backend = "auto"
    schedule: Schedule = "auto"
    workers: Workers = None
    dtype: Dtype = "auto"
    kv_dtype: KvDtype = "auto"
    max_context: MaxContext = None


def grouped(function: Callable[..., None]) -> Callable[..., None]:
    """The command as typer sees it: a parameter whose type is a group of options, a dataclass, is
    in the place of the options themselves."""
    groups: dict[str, tuple[Any, list[str]]] = {}
    parameters = []
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        group = hints[name]
        if not is_dataclass(group):
            parameters.append(parameter.replace(annotation=group))
            continue
        of_field = get_type_hints(group, include_extras=True)
        groups[name] = group, [field.name for field in fields(group)]
        parameters += [parameter.replace(name=field.name, annotation=of_field[field.name],
                                         default=field.default) for field in fields(group)]

    @functools.wraps(function)
    def command(**options: Any) -> None:
        for name, (group, names) in groups.items():
            options[name] = group(**{option: options.pop(option) for option in names})
        function(**options)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def compile_model(model: str, options: CompileOptions) -> Decoder:
    """compile_decode_loop with a progress bar where someone watches."""
    from frontend.compile import compile_decode_loop

    with ProgressBar() as progress:
        return compile_decode_loop(model, progress=progress, **asdict(options))
