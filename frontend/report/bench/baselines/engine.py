"""What every baseline can do, and how it is timed: in the same way, token by token."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from frontend.config.sampling import Sampling

GREEDY, SAMPLED = "greedy", "sampled"
SAMPLED_OPTIONS: dict[str, Any] = {"temperature": 0.8, "top_k": 50, "top_p": 0.95}


@dataclass(frozen=True, slots=True)
class Work:
    """What a round does, and on what. As JSON it goes to the process of a baseline."""

    engine: str  # one of BASELINES
    model: str  # a directory, or a GGUF file for llama-cpp
    dtype: str
    workers: int
    device: str  # cpu or cuda
    depth_ids: list[int]  # in the KV cache before the clock starts
    prompt_ids: list[int]
    new_tokens: int
    sampled: bool  # whether there are sampled rounds beside the greedy ones
    seed: int

    @property
    def samplings(self) -> dict[str, Sampling]:
        """How tokens are chosen, by the name of the kind of round."""
        found = {GREEDY: Sampling()}
        if self.sampled:
            found[SAMPLED] = Sampling(**SAMPLED_OPTIONS, seed=self.seed)
        return found

    @property
    def capacity(self) -> int:
        """Positions of the KV cache."""
        return len(self.depth_ids) + len(self.prompt_ids) + self.new_tokens


class Engine(Protocol):
    """A model with a KV cache for one sequence."""

    version: str

    def start(self, sampling: Sampling) -> None:
        """Empties the KV cache; `choose` follows `sampling` from its seed on."""
        ...

    def feed(self, token_ids: Sequence[int]) -> None:
        """Appends tokens to the sequence."""
        ...

    def choose(self) -> int:
        """A token to follow the sequence; it must be fed to become part of it."""
        ...

    def logits(self) -> npt.NDArray[np.float32]:
        """After the last token: [vocab]"""
        ...


def run_round(engine: Engine, work: Work, sampling: Sampling) -> dict[str, Any]:
    """Tokens, and when each was known, in nanoseconds of one clock."""
    tokens: list[int] = []
    times_ns: list[int] = []
    engine.start(sampling)
    if work.depth_ids:
        engine.feed(work.depth_ids)
        engine.choose()  # a GPU is done with them only now
    start_ns = time.monotonic_ns()
    engine.feed(work.prompt_ids)
    while True:
        tokens.append(engine.choose())
        times_ns.append(time.monotonic_ns())
        if len(tokens) == work.new_tokens:
            return {"output_ids": tokens, "start_ns": start_ns, "token_times_ns": times_ns}
        engine.feed(tokens[-1:])


def logits_of(engine: Engine, work: Work, output_ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """The logits that chose each of `output_ids`: [tokens, vocab]"""
    engine.start(Sampling())
    engine.feed([*work.depth_ids, *work.prompt_ids])
    rows = [engine.logits()]
    for token in output_ids[:-1]:
        engine.feed([token])
        rows.append(engine.logits())
    return np.stack(rows)
