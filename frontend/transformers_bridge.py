"""The megakernel inside transformers' `generate`, and transformers' streamers on our streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch

from event_tensor.errors import UserError
from frontend.decoder import Decoder
from frontend.generation import Generation

if TYPE_CHECKING:
    from transformers.generation import BaseStreamer

# transformers' name of a step of sampling → its attribute and our name of it
PROCESSORS = {"RepetitionPenaltyLogitsProcessor": ("penalty", "repetition_penalty"),
              "TemperatureLogitsWarper": ("temperature", "temperature"),
              "TopKLogitsWarper": ("top_k", "top_k"), "TopPLogitsWarper": ("top_p", "top_p"),
              "MinPLogitsWarper": ("min_p", "min_p")}
CRITERIA = ("MaxLengthCriteria", "EosTokenCriteria")
SEED_LIMIT = 2**62


def generate_with(decoder: Decoder, streamer: BaseStreamer | None = None
                  ) -> Callable[..., torch.Tensor]:
    """What `model.generate(input_ids, custom_generate=generate_with(decoder), …)` takes.

    transformers checks its arguments and then calls this in place of its own loop; greedy tokens
    are the same, sampled ones follow `torch.manual_seed`. Prompts of several lengths are padded on
    the left and masked, as for transformers. It hands no streamer to a function of this kind: give
    it here, and not to `generate`.

    Raises UserError, naming it, for what the megakernel does not do: beams, other logits
    processors and stopping criteria, scores.
    """

    def custom_generate(model: Any, input_ids: torch.Tensor, logits_processor: Iterable[Any],
                        stopping_criteria: Iterable[Any], generation_config: Any,
                        **model_kwargs: Any) -> torch.Tensor:
        # input_ids: [batch, prompt]; attention_mask: the same, or None; result: [batch, all]
        refuse_unsupported(generation_config)
        mask = model_kwargs.get("attention_mask")
        rows = input_ids if mask is None else [
            row[keep.bool()] for row, keep in zip(input_ids, mask, strict=True)]
        prompts = [row.tolist() for row in rows]
        options = sampling_options(logits_processor, bool(generation_config.do_sample))
        options |= stopping_options(stopping_criteria, decoder, input_ids.shape[1])
        if streamer is None:
            results = decoder.generate(prompts, **options)
        elif len(prompts) == 1:
            results = [stream_into(streamer, decoder, prompts[0], **options)]
        else:
            raise UserError(f"a streamer takes one prompt, and there are {len(prompts)}; leave "
                            f"the streamer out, or give them one by one")
        pad = generation_config.pad_token_id
        end = options["eos_token_id"] or decoder.config.eos_token_ids
        return join(input_ids, [r.output_ids for r in results],
                    pad if pad is not None else next(iter(end), 0))

    return custom_generate


def stream_into(streamer: BaseStreamer, decoder: Decoder, prompt_ids: Sequence[int],
                **options: Any) -> Generation:
    """Generates into a TextStreamer, a TextIteratorStreamer or another of transformers' streamers.

    Options as in `Decoder.generate`. The streamer is ended whatever happens.
    """
    result = Generation([])
    try:
        streamer.put(torch.tensor([list(prompt_ids)]))
        with closing(decoder.stream(prompt_ids, result=result, **options)) as tokens:
            for token in tokens:
                streamer.put(torch.tensor([token.id]))
    finally:
        streamer.end()  # whoever reads a TextIteratorStreamer waits for this
    return result


def refuse_unsupported(config: Any) -> None:
    for name, allowed in (("num_beams", (None, 1)), ("num_return_sequences", (None, 1)),
                          ("return_dict_in_generate", (None, False)),
                          ("token_healing", (None, False))):
        if getattr(config, name, None) not in allowed:
            raise UserError(f"the megakernel does not support {name}={getattr(config, name)}; "
                            f"leave it out, or leave out custom_generate")


def sampling_options(processors: Iterable[Any], do_sample: bool) -> dict[str, Any]:
    """Fields of `Sampling` from transformers' prepared logits processors."""
    options: dict[str, Any] = {"temperature": 1.0 if do_sample else 0.0, "top_k": 0, "top_p": 1.0,
                               "min_p": 0.0, "repetition_penalty": 1.0}
    for processor in processors:
        name = type(processor).__name__
        if name not in PROCESSORS:
            raise UserError(f"the megakernel does not run the logits processor {name}; leave it "
                            f"out, or leave out custom_generate")
        attribute, ours = PROCESSORS[name]
        options[ours] = getattr(processor, attribute)
    if do_sample:
        options["seed"] = int(torch.randint(SEED_LIMIT, ()))
    return options


def stopping_options(criteria: Iterable[Any], decoder: Decoder, prompt_tokens: int
                     ) -> dict[str, Any]:
    """max_new_tokens and end tokens from transformers' prepared stopping criteria."""
    found = {type(criterion).__name__: criterion for criterion in criteria}
    for name in found:
        if name not in CRITERIA:
            raise UserError(f"the megakernel does not run the stopping criterion {name}; leave it "
                            f"out, or leave out custom_generate")
    ends = found.get("EosTokenCriteria")
    asked = ends.eos_token_id.flatten().tolist() if ends is not None else []
    return {"max_new_tokens": found["MaxLengthCriteria"].max_length - prompt_tokens,
            "ignore_eos": not asked, "eos_token_id": asked or None}


def join(input_ids: torch.Tensor, outputs: Sequence[Sequence[int]], pad: int) -> torch.Tensor:
    """[batch, prompt + longest output]; shorter outputs are padded on the right."""
    longest = max(map(len, outputs))
    rows = [[*output, *[pad] * (longest - len(output))] for output in outputs]
    return torch.cat([input_ids, torch.tensor(rows, dtype=input_ids.dtype,
                                              device=input_ids.device)], dim=1)
