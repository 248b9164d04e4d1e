"""A product on tensor cores that keeps one side in float32 precision."""

from __future__ import annotations

import triton
import triton.language as tl

TF32_BITS = tl.constexpr(-(2**13))  # sign, exponent and the ten leading bits of the fraction


@triton.jit
def widened_dot(a, b, total, CONFIG: tl.constexpr):
    """total + a @ b with a in float32 precision, b as it is stored. [M, K] @ [K, N]

    bfloat16 keeps eight bits, so a is split in two parts: weights are what has to be read, and
    the second product costs no memory traffic.
    """
    if CONFIG.interpreted:
        total = tl.dot(a, b.to(tl.float32), total, input_precision="ieee")
    elif b.dtype == tl.bfloat16:
        high = a.to(tl.bfloat16)
        low = (a - high.to(tl.float32)).to(tl.bfloat16)
        total += tl.dot(low, b) + tl.dot(high, b)
    elif b.dtype == tl.float16:
        # float16 has too few exponents for rows before their norm; tf32 holds float16 exactly
        high = (a.to(tl.int32, bitcast=True) & TF32_BITS).to(tl.float32, bitcast=True)
        wide = b.to(tl.float32)
        total += tl.dot(a - high, wide, input_precision="tf32")
        total += tl.dot(high, wide, input_precision="tf32")
    else:
        total = tl.dot(a, b, total, input_precision="ieee")
    return total
