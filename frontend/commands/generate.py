"""`event-tensor generate`: continues one prompt."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from event_tensor.errors import UserError
from frontend.commands.app import CompileOptions, Json, Model, compile_model
from frontend.commands.streams import read_input, require_text
from frontend.commands.text_options import FROM_MODEL, TextOptions, given_ids, parse_ids
from frontend.report.console import print_json, speed_words

if TYPE_CHECKING:
    from frontend.decode.decoder import Decoder
    from frontend.decode.generation import Generation


def generate(
    model: Model,
    *,
    prompt: Annotated[str | None, typer.Option(help="The text to continue.")] = None,
    prompt_ids: Annotated[str | None, typer.Option(
        metavar="1,2,3", help="The token ids to continue; needs no tokenizer.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(
        help="Stop after so many tokens.", show_default="generation_config.json, else 128")] = None,
    compile_options: CompileOptions,
    text: TextOptions,
    no_repeat_ngram_size: Annotated[int | None, typer.Option(
        help="No run of so many tokens comes twice; 0: no such rule.",
        show_default=FROM_MODEL)] = None,
    min_new_tokens: Annotated[int | None, typer.Option(
        help="No end token comes before so many.", show_default=FROM_MODEL)] = None,
    suppress_tokens: Annotated[str | None, typer.Option(
        metavar="1,2,3", help="Tokens that are never chosen.", show_default=FROM_MODEL)] = None,
    logprobs: Annotated[bool, typer.Option(
        "--logprobs", help="Record the log-probability of each token.")] = False,
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
        given = read_input()
    elif isinstance(given, str):
        require_text(given, "--prompt")
    options = text.given(
        max_new_tokens=max_new_tokens, ignore_eos=ignore_eos, logprobs=logprobs,
        no_repeat_ngram_size=no_repeat_ngram_size, min_new_tokens=min_new_tokens,
        suppress_tokens=given_ids(suppress_tokens, "--suppress-tokens"))
    decoder = compile_model(model, compile_options)
    if json_output:
        result = decoder.generate(given, **options)
    else:
        result = stream_to_stdout(decoder, given, options)
    record = generation_record(decoder, result)
    if json_output:
        print_json(record)
    else:
        print(summary_line(record), file=sys.stderr)


def stream_to_stdout(decoder: Decoder, prompt: str | list[int], options: dict[str, Any]
                     ) -> Generation:
    """Writes text as it comes; token ids where the model has no tokenizer."""
    from frontend.decode.generation import Generation

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
    return ", ".join([
        *speed_words(record["ttft_ms"], record["tpot_ms"], record["tokens_per_second"]),
        f"{record['backend']} backend", f"{record['schedule']} schedule",
        f"{record['workers']} workers",
        *(f"{name} {value}" for name, value in record["sampling"].items()
          if record["sampling"]["temperature"])])
