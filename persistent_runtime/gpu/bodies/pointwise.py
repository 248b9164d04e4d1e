"""What is done to single values: activations, and the weights of norms."""

from __future__ import annotations

import triton
import triton.language as tl

from persistent_runtime.functions import activations

GELU, GELU_TANH = tl.constexpr(activations.GELU), tl.constexpr(activations.GELU_TANH)
RELU2 = tl.constexpr(activations.RELU2)
SCALE = tl.constexpr(2 * activations.GELU_TANH_SCALE)
CUBE = tl.constexpr(activations.GELU_TANH_CUBE)
SQRT_HALF = tl.constexpr(0.5**0.5)


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """The activation of float32 values."""
    if ACTIVATION == GELU_TANH:  # (1 + tanh(u)) / 2 = 1 / (1 + e^-2u)
        value = x / (1.0 + tl.exp(-(x + x * x * x * CUBE) * SCALE))
    elif ACTIVATION == GELU:
        value = 0.5 * x * (1.0 + tl.erf(x * SQRT_HALF))
    elif ACTIVATION == RELU2:
        positive = tl.where(x < 0.0, 0.0, x)  # a NaN is not below zero and stays
        value = positive * positive
    else:
        value = x / (1.0 + tl.exp(-x))
    return value


@triton.jit
def norm_factors(weight, OFFSET: tl.constexpr):
    """What a norm multiplies by, float32: its weights, and what is added to each."""
    factors = weight.to(tl.float32)
    if OFFSET != 0.0:
        factors += OFFSET
    return factors
