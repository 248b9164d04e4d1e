"""transformers on the same weights: the baseline of a benchmark and the judge of its tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch


def load_transformers(directory: Path, dtype: str) -> Any:
    """The eager model in `dtype`, without messages and progress bars."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(directory), dtype=getattr(torch, dtype), local_files_only=True)
    return model.eval()


@torch.inference_mode()
def generate_timed(model: Any, prompt_ids: Sequence[int], new_tokens: int
                   ) -> tuple[list[int], int, list[int]]:
    """Greedy decoding with a KV cache: (tokens, start, time of each token), in nanoseconds."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    tokens: list[int] = []
    times_ns: list[int] = []
    start_ns = time.monotonic_ns()
    inputs = torch.tensor([list(prompt_ids)])  # [1, prompt tokens]
    while len(tokens) < new_tokens:
        logits = model(input_ids=inputs, past_key_values=cache, use_cache=True,
                       logits_to_keep=1).logits  # [1, 1, vocab]
        inputs = logits[:, -1].argmax(-1, keepdim=True)
        tokens.append(int(inputs))
        times_ns.append(time.monotonic_ns())
    return tokens, start_ns, times_ns


@torch.inference_mode()
def last_logits(model: Any, token_ids: Sequence[int], keep: int) -> npt.NDArray[np.float32]:
    """Logits after each of the last `keep` tokens, from one forward pass: [keep, vocab]."""
    logits = model(input_ids=torch.tensor([list(token_ids)]), use_cache=False,
                   logits_to_keep=keep).logits
    result: npt.NDArray[np.float32] = logits[0].float().numpy()
    return result
