"""What the host writes for a launch: the control tensors of its rows and of its requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from frontend.config.sampling import Sampling
from frontend.decode.end_tokens import EndTokens
from frontend.decode.generation import Generation
from frontend.decode.plan import Plan, Request
from frontend.decode.processors import BiasList, processors_record
from frontend.graph.control import Control
from persistent_runtime.rows import layout

FLOAT32 = np.finfo(np.float32)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the requests of one launch have in common beside their sampling values."""

    ends: EndTokens
    biases: BiasList


def write_plan(control: Control[Any], plan: Plan) -> None:
    """The rows of all segments."""
    for rows, values in ((control.row_request, plan.row_request),
                         (control.row_position, plan.row_position),
                         (control.logit_row, plan.logit_row)):
        rows[:len(values)] = values


def write_requests(control: Control[Any], results: Sequence[Generation],
                   requests: Sequence[Request], rules: Rules) -> None:
    """Prompts, limits and how tokens are chosen; `result.sampling` says that for each request."""
    biases = rules.biases
    control.stop_ids[:] = rules.ends.padded_ids
    control.biases[:len(biases.biases)] = biases.biases
    control.bias_prefixes[:len(biases.prefixes)] = biases.prefixes
    control.finished[:] = layout.ENDED  # requests that this launch does not have
    for k, (result, request) in enumerate(zip(results, requests, strict=True)):
        control.token_ids[k, :request.prompt_tokens] = result.prompt_ids
        control.length[k] = request.prompt_tokens
        control.length_limit[k] = request.end
        control.finished[k] = layout.RUNNING
        control.seed[k] = result.sampling.seed or 0
        control.sampling[k] = sampling_record(result.sampling)
        control.processors[k] = processors_record(biases, result.sampling, request.prompt_tokens)


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
