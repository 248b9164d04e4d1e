"""`event-tensor chat`: a conversation; chat_terminal.py has the terminal's side."""

from __future__ import annotations

from typing import Annotated

import typer

from frontend.commands.app import CompileOptions, Model, compile_model
from frontend.commands.streams import require_text
from frontend.commands.text_options import TextOptions


def chat(
    model: Model,
    *,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(
        help="Cut an answer after so many tokens.",
        show_default="generation_config.json, else 1024")] = None,
    compile_options: CompileOptions,
    text: TextOptions,
) -> None:
    """Talk to a model; /stats, /reset and /quit, Ctrl-C ends an answer, Ctrl-D the chat."""
    from frontend.commands.chat_terminal import chat_on_terminal
    from frontend.model_files.chat_template import load_chat_template
    from frontend.model_files.resolve import resolve_model

    options = text.given(max_new_tokens=max_new_tokens)
    require_text(system or "", "--system")
    load_chat_template(resolve_model(model))  # a model without one is refused before it is compiled
    decoder = compile_model(model, compile_options)
    chat_on_terminal(decoder.chat(system), options)
