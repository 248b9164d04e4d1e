"""What the host writes for a launch: the control tensors of its rows and of its requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from frontend.config.sampling import Sampling
from frontend.decode.end_tokens import EndTokens
from frontend.decode.generation import Generation
from frontend.decode.plan import Plan, Request
from frontend.decode.processors import BiasList, processors_record
from persistent_runtime.rows import layout

FLOAT32 = np.finfo(np.float32)
Tensors = Callable[[str], Any]  # name of a control tensor → its host side


@dataclass(frozen=True, slots=True)
class Rules:
    """What the requests of one launch have in common beside their sampling values."""

    ends: EndTokens
    biases: BiasList


def write_plan(tensors: Tensors, plan: Plan) -> None:
    """The rows of all segments."""
    for name, values in (("row_request", plan.row_request), ("row_position", plan.row_position),
                         ("logit_row", plan.logit_row)):
        tensors(name)[:len(values)] = values


def write_requests(tensors: Tensors, results: Sequence[Generation], requests: Sequence[Request],
                   rules: Rules) -> None:
    """Prompts, limits and how tokens are chosen; `result.sampling` says that for each request."""
    biases = rules.biases
    tensors("stop_ids")[:] = rules.ends.padded_ids
    tensors("biases")[:len(biases.biases)] = biases.biases
    tensors("bias_prefixes")[:len(biases.prefixes)] = biases.prefixes
    tensors("finished")[:] = layout.ENDED  # requests that this launch does not have
    for k, (result, request) in enumerate(zip(results, requests, strict=True)):
        tensors("token_ids")[k, :request.prompt_tokens] = result.prompt_ids
        tensors("length")[k] = request.prompt_tokens
        tensors("length_limit")[k] = request.end
        tensors("finished")[k] = layout.RUNNING
        tensors("seed")[k] = result.sampling.seed or 0
        tensors("sampling")[k] = sampling_record(result.sampling)
        tensors("processors")[k] = processors_record(biases, result.sampling,
                                                     request.prompt_tokens)


def sampling_record(sampling: Sampling) -> npt.NDArray[np.float32]:
    """[SAMPLING_WORDS], as select_token reads it."""
    record = np.zeros(layout.SAMPLING_WORDS, np.float32)
    record[layout.TEMPERATURE] = 0.0 if sampling.is_greedy else normal(sampling.temperature)
    record[layout.TOP_K] = sampling.top_k
    record[layout.TOP_P] = sampling.top_p
    record[layout.MIN_P] = sampling.min_p
    record[layout.REPETITION_PENALTY] = normal(sampling.repetition_penalty)
    record[layout.LOGPROBS] = sampling.logprobs
    return record


def normal(value: float) -> float:
    """The nearest normal float32 to a number above 0: neither 0, by which is divided, nor inf."""
    return min(max(value, float(FLOAT32.tiny)), float(FLOAT32.max))
