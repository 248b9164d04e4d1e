"""Rotary tables, computed step by step as transformers does (`modeling_rope_utils.py`)."""

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from frontend.config.rope import RopeConfig

if TYPE_CHECKING:
    import torch


def rope_tables(
    config: RopeConfig, head_dim: int, max_context: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """cos and sin of position × inverse frequency.

    Returns cos, sin: [max_context, head_dim / 2] float32. Column d rotates element d of a head with
    element d + head_dim / 2 (transformers holds every column twice).
    """
    # torch, not numpy: transformers uses torch, and the last bits of pow and cos differ.
    import torch

    positions = torch.arange(max_context).float()
    angles = positions[:, None] * inverse_frequencies(config, head_dim)
    return angles.cos().numpy(), angles.sin().numpy()


def inverse_frequencies(config: RopeConfig, head_dim: int) -> "torch.Tensor":
    """inv_freq: [head_dim / 2] float32, in radians per position."""
    import torch

    exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
    inv_freq: torch.Tensor = 1.0 / (config.theta**exponents)
    if config.rope_type == "linear":
        inv_freq /= config.factor
    elif config.rope_type == "llama3":
        inv_freq = llama3_frequencies(config, inv_freq)
    return inv_freq


def llama3_frequencies(config: RopeConfig, inv_freq: "torch.Tensor") -> "torch.Tensor":
    """Llama 3.1: `factor` slows the slow rotations; fast ones stay; between, it interpolates."""
    import torch

    low, high = config.low_freq_factor, config.high_freq_factor
    context = config.original_max_position_embeddings
    assert low is not None and high is not None and context is not None  # parse_rope gives them
    wavelength = 2 * math.pi / inv_freq  # in positions
    slow = wavelength > context / low
    fast = wavelength < context / high
    scaled = torch.where(slow, inv_freq / config.factor, inv_freq)
    smooth = (context / wavelength - low) / (high - low)
    smoothed = (1 - smooth) * scaled / config.factor + smooth * scaled
    return torch.where(~slow & ~fast, smoothed, scaled)
