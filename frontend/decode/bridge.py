"""The megakernel inside transformers' `generate`, and transformers' streamers on our streams."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from event_tensor.errors import UserError
from frontend.decode.bridge_processors import processor_options
from frontend.decode.decoder import Decoder
from frontend.decode.generate_arguments import (
    arguments_of,
    refuse_arguments,
    refuse_config,
    refuse_kept_back,
    refuse_positions,
)
from frontend.decode.generation import Generation
from frontend.decode.prompts import read_prompt, without_padding

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

SEED_LIMIT = 2**62


def generate_with(decoder: Decoder, streamer: BaseStreamer | None = None
                  ) -> Callable[..., torch.Tensor]:
    """What `model.generate(input_ids, custom_generate=generate_with(decoder), …)` takes.

    transformers checks its arguments and then calls this in place of its own loop; greedy tokens
    are the same, sampled ones follow `torch.manual_seed`. Prompts of several lengths are padded on
    the left and masked, as for transformers. The streamer may be given here or to `generate`.

    Raises UserError, naming it, for what the megakernel does not do: beams, other logits
    processors and stopping criteria, scores, a cache, embeddings or an assistant of the user's, and
    whatever else it would not read.
    """

    def custom_generate(model: Any, input_ids: torch.Tensor, logits_processor: Iterable[Any],
                        stopping_criteria: Iterable[Any], generation_config: Any,
                        **model_kwargs: Any) -> torch.Tensor:
        # input_ids: [batch, prompt]; attention_mask: the same, or None; result: [batch, all]
        asked = arguments_of(sys._getframe(1))
        theirs = asked.get("streamer") or model_kwargs.pop("streamer", None)
        with ended(streamer), ended(theirs):
            refuse_config(generation_config)
            refuse_kept_back(asked)
            refuse_arguments(model_kwargs)
            prompts = unpadded(input_ids, model_kwargs)
            width, samples = input_ids.shape[1], bool(generation_config.do_sample)
            options = stopping_options(stopping_criteria, width)
            options |= processor_options(logits_processor, samples, width,
                                         options["eos_token_id"] or ())
            options |= ends_in_vocabulary(options["eos_token_id"], decoder.config.vocab_size)
            if samples:
                options["seed"] = int(torch.randint(SEED_LIMIT, ()))
            into = one_streamer(streamer, theirs, len(prompts))
            if into is None:
                results = decoder.generate(prompts, **options)
            else:
                if into is streamer:  # generate has put the prompt into its own
                    into.put(input_ids.cpu())
                results = [feed(into, decoder, prompts[0], **options)]
        return join(input_ids, [r.output_ids for r in results], pad_id(generation_config))

    return custom_generate


def stream_into(streamer: BaseStreamer, decoder: Decoder, prompt: Any, **options: Any
                ) -> Generation:
    """Generates into a TextStreamer, a TextIteratorStreamer or another of transformers' streamers.

    Prompt and options as in `Decoder.stream`. The streamer is ended whatever happens.
    """
    with ended(streamer):
        ids = read_prompt(decoder, prompt)
        streamer.put(torch.tensor([ids]))
        return feed(streamer, decoder, ids, **options)


def one_streamer(ours: BaseStreamer | None, theirs: BaseStreamer | None, prompts: int
                 ) -> BaseStreamer | None:
    """The streamer given to generate_with or to generate, if there is one."""
    if ours is not None and theirs is not None:
        raise UserError("generate_with and generate each have a streamer; leave one of them out")
    streamer = theirs if ours is None else ours
    if streamer is not None and prompts > 1:
        raise UserError(f"a streamer takes one prompt, and there are {prompts}; leave the streamer "
                        f"out, or give them one by one")
    return streamer


@contextmanager
def ended(streamer: BaseStreamer | None) -> Iterator[None]:
    """Whoever reads a TextIteratorStreamer waits for its end, after an error too."""
    try:
        yield
    finally:
        if streamer is not None:
            streamer.end()


def feed(streamer: BaseStreamer, decoder: Decoder, prompt_ids: Sequence[int], **options: Any
         ) -> Generation:
    """Puts each new token into a streamer that has the prompt."""
    result = Generation([])
    with closing(decoder.stream(prompt_ids, result=result, **options)) as tokens:
        for token in tokens:
            streamer.put(torch.tensor([token.id]))
    return result


def unpadded(input_ids: torch.Tensor, model_kwargs: Mapping[str, Any]) -> list[list[int]]:
    """The ids of each row behind the padding on its left.

    input_ids: [batch, prompt]; attention_mask, if there is one, the same; position_ids: the same or
    [1, prompt]. Raises UserError for another mask and for other positions.
    """
    rows, tokens = input_ids.tolist(), input_ids.shape[1]
    mask = model_kwargs.get("attention_mask")
    if mask is not None:
        if mask.shape != input_ids.shape:
            raise UserError(f"attention_mask has the shape {list(mask.shape)} and input_ids "
                            f"{list(input_ids.shape)}; give both in one shape")
        rows = [without_padding(row, keep, f"prompt {number}")
                for number, (row, keep) in enumerate(zip(rows, mask.tolist(), strict=True))]
    positions = model_kwargs.get("position_ids")
    if positions is not None:
        refuse_positions(positions, [tokens - len(row) for row in rows], tokens)
    return rows


def pad_id(config: Any) -> int:
    """What transformers writes behind an output that has ended."""
    pad = getattr(config, "_pad_token_tensor", None)
    pad = pad if pad is not None else config.pad_token_id
    return 0 if pad is None else int(pad)


def stopping_options(criteria: Iterable[Any], prompt_tokens: int) -> dict[str, Any]:
    """max_new_tokens and end tokens from transformers' prepared stopping criteria."""
    lengths, ends = [], list[int]()
    for criterion in criteria:
        name = type(criterion).__name__
        if name == "MaxLengthCriteria":
            lengths.append(criterion.max_length)
        elif name == "EosTokenCriteria":
            ends += criterion.eos_token_id.flatten().tolist()
        else:
            raise UserError(f"the megakernel does not run the stopping criterion {name}; leave it "
                            f"out, or leave out custom_generate")
    return {"max_new_tokens": min(lengths) - prompt_tokens, "eos_token_id": ends or None}


def ends_in_vocabulary(ends: Iterable[int] | None, vocab_size: int) -> dict[str, Any]:
    """Stale configs name ids that no token has, and -1 for none: nothing ends there."""
    found = [token_id for token_id in ends or () if 0 <= token_id < vocab_size]
    return {"eos_token_id": found or None, "ignore_eos": not found}


def join(input_ids: torch.Tensor, outputs: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """[batch, prompt + longest output]; shorter outputs are padded on the right."""
    longest = max(map(len, outputs))
    rows = [[*output, *[pad] * (longest - len(output))] for output in outputs]
    return torch.cat([input_ids, torch.tensor(rows, dtype=input_ids.dtype,
                                              device=input_ids.device)], dim=1)
