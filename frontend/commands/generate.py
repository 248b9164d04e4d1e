"""Commands that make text: `generate` and `chat`."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from event_tensor.errors import UserError
from frontend.commands.app import (
    FROM_MODEL,
    Backend,
    Dtype,
    EosTokenId,
    Json,
    KvDtype,
    MaxContext,
    MinP,
    Model,
    RepetitionPenalty,
    Schedule,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
    Workers,
    app,
    compile_model,
)
from frontend.commands.streams import read_input, require_text
from frontend.report.console import print_json

if TYPE_CHECKING:
    from frontend.decode.decoder import Decoder
    from frontend.decode.generation import Generation


def parse_ids(text: str, option: str = "--prompt-ids") -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text!r} is not a list of integers; write it like "
                        f"1,2,3") from None


def given_ids(text: str | None, option: str) -> list[int] | None:
    return None if text is None else parse_ids(text, option)


@app.command()
def generate(
    model: Model,
    prompt: Annotated[str | None, typer.Option(help="The text to continue.")] = None,
    prompt_ids: Annotated[str | None, typer.Option(
        metavar="1,2,3", help="The token ids to continue; needs no tokenizer.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(
        help="Stop after so many tokens.", show_default="generation_config.json, else 128")] = None,
    backend: Backend = "auto",
    schedule: Schedule = "auto",
    workers: Workers = None,
    dtype: Dtype = "auto",
    kv_dtype: KvDtype = "auto",
    max_context: MaxContext = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    no_repeat_ngram_size: Annotated[int | None, typer.Option(
        help="No run of so many tokens comes twice; 0: no such rule.",
        show_default=FROM_MODEL)] = None,
    min_new_tokens: Annotated[int | None, typer.Option(
        help="No end token comes before so many.", show_default=FROM_MODEL)] = None,
    suppress_tokens: Annotated[str | None, typer.Option(
        metavar="1,2,3", help="Tokens that are never chosen.", show_default=FROM_MODEL)] = None,
    seed: Seed = None,
    logprobs: Annotated[bool, typer.Option(
        "--logprobs", help="Record the log-probability of each token.")] = False,
    stop: Stop = None,
    eos_token_id: EosTokenId = None,
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
    options = {"max_new_tokens": max_new_tokens, "ignore_eos": ignore_eos, "stop": stop or (),
               "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
               "repetition_penalty": repetition_penalty, "seed": seed, "logprobs": logprobs,
               "no_repeat_ngram_size": no_repeat_ngram_size, "min_new_tokens": min_new_tokens,
               "suppress_tokens": given_ids(suppress_tokens, "--suppress-tokens"),
               "eos_token_id": given_ids(eos_token_id, "--eos-token-id")}
    check_options(options)
    decoder = compile_model(model, backend=backend, schedule=schedule, workers=workers, dtype=dtype,
                            kv_dtype=kv_dtype, max_context=max_context)
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
        help="Cut an answer after so many tokens.",
        show_default="generation_config.json, else 1024")] = None,
    backend: Backend = "auto",
    schedule: Schedule = "auto",
    workers: Workers = None,
    dtype: Dtype = "auto",
    kv_dtype: KvDtype = "auto",
    max_context: MaxContext = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    seed: Seed = None,
    stop: Stop = None,
    eos_token_id: EosTokenId = None,
) -> None:
    """Talk to a model; /stats, /reset and /quit, Ctrl-C ends an answer, Ctrl-D the chat."""
    from frontend.commands.chat_terminal import chat_on_terminal
    from frontend.model_files.chat_template import load_chat_template
    from frontend.model_files.resolve import resolve_model

    options = {"max_new_tokens": max_new_tokens, "stop": stop or (), "temperature": temperature,
               "top_k": top_k, "top_p": top_p, "min_p": min_p,
               "repetition_penalty": repetition_penalty, "seed": seed,
               "eos_token_id": given_ids(eos_token_id, "--eos-token-id")}
    check_options(options)
    require_text(system or "", "--system")
    load_chat_template(resolve_model(model))  # a model without one is refused before it is compiled
    decoder = compile_model(model, backend=backend, schedule=schedule, workers=workers, dtype=dtype,
                            kv_dtype=kv_dtype, max_context=max_context)
    chat_on_terminal(decoder.chat(system), options)


def check_options(options: dict[str, Any]) -> None:
    """Refuses what no model could make right, before one is loaded."""
    from frontend.config.sampling import Sampling
    from frontend.decode.stop_strings import StopFilter

    names = {field.name for field in fields(Sampling)}
    Sampling().with_options({name: value for name, value in options.items() if name in names})
    StopFilter(options["stop"])
    for text in options["stop"]:
        require_text(text, "--stop")


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
    tpot = record["tpot_ms"]
    return ", ".join([
        f"TTFT {record['ttft_ms']:.1f} ms", *([f"TPOT p50 {tpot['p50']:.2f} ms"] if tpot else []),
        f"{record['tokens_per_second']:.1f} tok/s", f"{record['backend']} backend",
        f"{record['schedule']} schedule", f"{record['workers']} workers",
        *(f"{name} {value}" for name, value in record["sampling"].items()
          if record["sampling"]["temperature"])])
