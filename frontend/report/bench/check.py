"""Correctness beside every speed: tokens and logits of each side against the float32 reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from frontend.config.sampling import Sampling
from frontend.report.bench.baselines.engine import Work
from frontend.report.bench.sides import Side

MAX_LOGIT_BYTES = 512 << 20  # of the logits compared with the reference, per side
REFERENCE = "transformers float32"
Outputs = Mapping[tuple[str, str], list[int]]  # (side, kind of round) → its tokens


def save_logits(sides: Mapping[str, Side], outputs: Outputs, vocab_size: int, folder: Path) -> None:
    """What led each side to its tokens, as files; of as many tokens as fit MAX_LOGIT_BYTES."""
    compared = max(1, MAX_LOGIT_BYTES // (4 * vocab_size))
    for (name, kind), output in outputs.items():
        sides[name].save_logits(output[:compared], logits_path(folder, name, kind))


def logits_path(folder: Path, name: str, kind: str) -> Path:
    return folder / f"{name}-{kind}.npy"


def judge(work: Work, outputs: Outputs, folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The reference is fed each side's own tokens; sides with the same tokens share its answer."""
    from frontend.report.reference import last_logits, load_transformers

    model = load_transformers(Path(work.model), "float32")
    expected: dict[tuple[int, ...], npt.NDArray[np.float32]] = {}
    verdicts = {}
    for (name, kind), output in outputs.items():
        logits = np.load(logits_path(folder, name, kind), mmap_mode="r")  # [compared, vocab]
        tokens = tuple(output[:len(logits)])
        if tokens not in expected:
            fed = [*work.depth_ids, *work.prompt_ids, *tokens[:-1]]
            expected[tokens] = last_logits(model, fed, len(tokens))
        verdicts[name, kind] = compare(np.array(tokens), logits, expected[tokens],
                                       work.samplings[kind])
    return verdicts


def compare(tokens: npt.NDArray[np.int64], logits: npt.NDArray[np.float32],
            reference: npt.NDArray[np.float32], sampling: Sampling) -> dict[str, Any]:
    """tokens: [compared]; both logits: [compared, vocab].

    tokens_equal: those the reference finds likeliest; for sampled rounds tokens_possible: those
    it could have drawn with these filters.
    """
    if sampling.is_greedy:
        agreed = {"tokens_equal": int((reference.argmax(-1) == tokens).sum())}
    else:
        least = smallest_drawn(reference, sampling)
        chosen = np.take_along_axis(reference, tokens[:, None], 1)[:, 0]
        agreed = {"tokens_possible": int((chosen >= least).sum())}
    return {"reference": REFERENCE, "tokens_compared": len(tokens), **agreed,
            "max_abs_logit_error": float(f"{np.abs(logits - reference).max():.3g}")}


def smallest_drawn(logits: npt.NDArray[np.float32], sampling: Sampling
                   ) -> npt.NDArray[np.float32]:
    """The smallest logit of each row that top-k and top-p let through: [rows]"""
    best = -np.sort(-logits, axis=-1)[:, :sampling.top_k or None]
    weights = np.exp((best - best[:, :1]) / sampling.temperature)
    chances = weights / weights.sum(-1, keepdims=True)
    kept = (chances.cumsum(-1) - chances < sampling.top_p).sum(-1)
    return np.take_along_axis(best, kept[:, None] - 1, 1)[:, 0]
