"""Prompts that need no tokenizer: what they say has no influence on how long they take."""

from __future__ import annotations

import numpy as np

from frontend.decode.decoder import Decoder


def random_prompt(decoder: Decoder, length: int, seed: int) -> list[int]:
    ids = np.random.default_rng(seed).integers(0, decoder.config.vocab_size, length)
    return [int(token) for token in ids]
