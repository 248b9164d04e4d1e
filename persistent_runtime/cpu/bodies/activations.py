"""The gate of an MLP: an activation times another product."""

from __future__ import annotations

import numpy as np

from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.intrinsics import keep_out_of_line
from persistent_runtime.cpu.vectors.numerics import ONE, ZERO, exp
from persistent_runtime.functions.activations import (
    GELU,
    GELU_TANH,
    GELU_TANH_CUBE,
    GELU_TANH_SCALE,
    SILU,
)

HALF, TWO, SQRT_HALF = np.float32(0.5), np.float32(2), np.float32(0.5**0.5)
SCALE, CUBE = np.float32(2 * GELU_TANH_SCALE), np.float32(GELU_TANH_CUBE)
# erfc(z) = t * exp(-z² + p(t)), t = 1 / (1 + z / 2), z >= 0, within 1.2e-7 of its value: Press et
# al., Numerical Recipes, erfcc. The highest coefficient comes first.
ERFC_9, ERFC_8, ERFC_7, ERFC_6, ERFC_5, ERFC_4, ERFC_3, ERFC_2, ERFC_1, ERFC_0 = (
    np.float32(c) for c in (0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807,
                            -0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223))


@device_jit
def activate_times(activation, gate, up, length):  # noqa: ANN201
    """up = activation(gate) * up; [length] float32."""
    if activation == SILU:
        for n in range(length):
            up[n] = gate[n] / (ONE + exp(-gate[n])) * up[n]
    else:
        _activate_times(activation, gate, up, length)


@device_jit
def _activate_times(activation, gate, up, length):
    keep_out_of_line()  # most models have none of these
    if activation == GELU_TANH:  # (1 + tanh(u)) / 2 = 1 / (1 + e^-2u)
        for n in range(length):
            x = gate[n]
            up[n] = x / (ONE + exp(-SCALE * (x + CUBE * x * x * x))) * up[n]
    elif activation == GELU:
        for n in range(length):
            up[n] = HALF * gate[n] * _erfc(-gate[n] * SQRT_HALF) * up[n]
    else:  # RELU2; a NaN is not below zero and stays
        for n in range(length):
            x = ZERO if gate[n] < ZERO else gate[n]
            up[n] = x * x * up[n]


@device_jit
def _erfc(x):
    """1 - erf(x), float32, without a branch."""
    z = -x if x < ZERO else x
    t = ONE / (ONE + HALF * z)
    p = (((((((((ERFC_9 * t + ERFC_8) * t + ERFC_7) * t + ERFC_6) * t + ERFC_5) * t + ERFC_4) * t
            + ERFC_3) * t + ERFC_2) * t + ERFC_1) * t + ERFC_0)
    tail = t * exp(p - z * z)
    return TWO - tail if x < ZERO else tail
