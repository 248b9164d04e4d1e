"""What the matrix products do with finished sums, whichever way the weights came."""

from __future__ import annotations

import triton
import triton.language as tl

from persistent_runtime.gpu.bodies.pointwise import activated


@triton.jit
def activate(sums, ups, factor, biases, n, mask_n, GATED: tl.constexpr, CONFIG: tl.constexpr):
    """Norm factor, bias, gate and multiplier."""
    sums = sums * factor
    if CONFIG.biased:
        sums += tl.load(biases[0] + n, mask=mask_n & biases[1], other=0).to(tl.float32)
    if GATED:
        ups = ups * factor
        if CONFIG.biased:
            ups += tl.load(biases[2] + n, mask=mask_n & biases[3], other=0).to(tl.float32)
        sums = activated(sums, CONFIG.activation) * ups
    if CONFIG.multiplier != 1.0:
        sums *= CONFIG.multiplier
    return sums


@triton.jit
def finish(sums, ups, factor, biases, out, n, mask_n, mask, GATED: tl.constexpr,
           ACCUMULATE: tl.constexpr, CONFIG: tl.constexpr):
    """Norm factor, bias, gate or residual, and the store."""
    sums = activate(sums, ups, factor, biases, n, mask_n, GATED, CONFIG)
    if ACCUMULATE:
        sums += tl.load(out, mask=mask, other=0)
    tl.store(out, sums, mask=mask)
