"""The GPU loader of `block_formats.FOUR_BITS`."""

import triton
import triton.language as tl


@triton.jit
def load_four_bits(rows, n, k, length, mask):
    block = rows + (n * (length // 32) + k // 32) * 18
    scale = tl.load(block.to(tl.pointer_type(tl.float16)), mask=mask, other=0).to(tl.float32)
    place = k % 32
    pair = tl.load(block + 2 + place % 16, mask=mask, other=0).to(tl.int32)
    codes = (pair >> place // 16 * 4) & 15
    return (codes.to(tl.float32) - 8) * scale
