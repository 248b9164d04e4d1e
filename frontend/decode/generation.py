"""What generation returns: tokens as they come, and the result with its times."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from frontend.config.sampling import Sampling
from persistent_runtime.trace.record import SegmentTrace


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token, as soon as the kernel has written it."""

    id: int
    text: str  # text that this token completes; may be empty
    time_ns: int  # CLOCK_MONOTONIC, taken on the worker that chose the token
    logprob: float | None = None  # where Sampling.logprobs asks for it
    request: int = 0  # which prompt of a batch


@dataclass(slots=True)
class Generation:
    """The result of one prompt. Times in milliseconds; TPOT leaves the first token out.

    finish_reason: "length", "eos", "stop" (a stop string), "aborted" or "error" (the logits were no
    numbers). prefilled_tokens: prompt tokens that were computed; the others were in the KV cache.
    trace: of a traced launch, one entry per segment: chunks of prefill, then the decode steps.
    """

    prompt_ids: list[int]
    output_ids: list[int] = field(default_factory=list)
    text: str | None = None
    start_ns: int = 0
    token_times_ns: list[int] = field(default_factory=list)
    logprobs: list[float] | None = None
    launches: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    finish_reason: str | None = None
    prefilled_tokens: int = 0
    trace: list[SegmentTrace] = field(default_factory=list)

    @property
    def ttft_ms(self) -> float:
        return (self.token_times_ns[0] - self.start_ns) / 1e6

    @property
    def inter_token_ms(self) -> npt.NDArray[np.float64]:
        times_ns: npt.NDArray[np.int64] = np.array(self.token_times_ns, np.int64)
        return (times_ns[1:] - times_ns[:-1]) / 1e6

    @property
    def tpot_ms(self) -> dict[str, float] | None:
        """p50, p90 and p99 of the time between tokens; None for fewer than two tokens."""
        return percentiles_ms(self.inter_token_ms)

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: tokens after the first, per second; of the whole run for one token."""
        times = self.token_times_ns
        if len(times) < 2:
            return 1e9 / max(times[-1] - self.start_ns, 1)
        return (len(times) - 1) * 1e9 / max(times[-1] - times[0], 1)


def percentiles_ms(gaps: npt.NDArray[np.float64]) -> dict[str, float] | None:
    """p50, p90 and p99 of times in milliseconds; None where there are none."""
    if not len(gaps):
        return None
    return {f"p{p}": round(float(np.percentile(gaps, p)), 4) for p in (50, 90, 99)}
