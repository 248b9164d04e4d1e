"""Options of commands that make text: how tokens are chosen, and where a text ends."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

import typer

from event_tensor.errors import UserError
from frontend.commands.streams import require_text

FROM_MODEL = "generation_config.json, else greedy"

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


@dataclass(frozen=True, slots=True)
class TextOptions:
    """What `generate` and `chat` have in common."""

    temperature: Temperature = None
    top_k: TopK = None
    top_p: TopP = None
    min_p: MinP = None
    repetition_penalty: RepetitionPenalty = None
    seed: Seed = None
    stop: Stop = None
    eos_token_id: EosTokenId = None

    def given(self, **others: Any) -> dict[str, Any]:
        """As `Decoder.generate` takes them, with others of its options. Raises UserError for what
        no model could make right."""
        options = asdict(self) | others | {
            "stop": self.stop or (),
            "eos_token_id": given_ids(self.eos_token_id, "--eos-token-id")}
        check_options(options)
        return options


def parse_ids(text: str, option: str = "--prompt-ids") -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option} {text!r} is not a list of integers; write it like "
                        f"1,2,3") from None


def given_ids(text: str | None, option: str) -> list[int] | None:
    return None if text is None else parse_ids(text, option)


def check_options(options: dict[str, Any]) -> None:
    """Refuses what no model could make right, before one is loaded."""
    from frontend.config.sampling import Sampling
    from frontend.decode.stop_strings import StopFilter

    names = {field.name for field in fields(Sampling)}
    Sampling().with_options({name: value for name, value in options.items() if name in names})
    StopFilter(options["stop"])
    for text in options["stop"]:
        require_text(text, "--stop")
