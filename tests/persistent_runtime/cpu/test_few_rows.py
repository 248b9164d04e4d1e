"""Products of 1 to 17 rows and more against float64: every format, odd lengths, what lies between
rows of the output left alone."""

import functools

import numpy as np
import pytest

pytest.importorskip("numba")

import block_formats
import numba as nb

from persistent_runtime import formats
from persistent_runtime.cpu.compile.registry import zero_of
from persistent_runtime.cpu.vectors.emit import CONVERTS_FLOAT16, DOTS_BFLOAT16
from persistent_runtime.cpu.vectors.intrinsics import pointer_to
from persistent_runtime.cpu.vectors.numerics import FEW_ROWS, matmul_rows

block_formats.register_cpu_loader()

DTYPES = [dtype for dtype in formats.DTYPES if dtype != "float16" or CONVERTS_FLOAT16]
BLOCKS = block_formats.FOUR_BITS.name
ROWS = [*range(1, 18), FEW_ROWS, FEW_ROWS + 1, FEW_ROWS + 7]
LENGTHS = (1, 19, 64, 333)
OUT_FEATURES = 13  # whole blocks of weight rows, and one row more
GAP = 3  # elements between rows of x and of the output
FLOAT32 = np.float32(0)


@functools.cache
def multiply_of(dtype, x_is_rounded):
    like, x_like = zero_of(dtype), zero_of("bfloat16") if x_is_rounded else FLOAT32

    @nb.njit
    def multiply(weight, weight_rows, length, x, x_stride, rows, out, out_stride, keep):
        matmul_rows(pointer_to(weight, like), weight_rows, length, pointer_to(x, x_like), x_stride,
                    rows, pointer_to(out, FLOAT32), out_stride, keep, None)

    return multiply


def stored(rng, dtype, rows, length):
    """(weights as they are stored, their values)"""
    if dtype == BLOCKS:
        kept = block_formats.random_rows(rng, rows, length)
        return kept, block_formats.dequantize(kept).astype(np.float64)
    values = rng.standard_normal((rows, length)).astype(np.float32)
    if dtype == "bfloat16":
        kept = (values.view(np.uint32) >> 16).astype(np.uint16)
        return kept, (kept.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    kept = values.astype(dtype)
    return kept, kept.astype(np.float64)


def check(dtype, rows, length, keep, x_is_rounded=False):
    rng = np.random.default_rng(100 * rows + length)
    weight, weight_value = stored(rng, dtype, OUT_FEATURES, length)
    x, x_value = stored(rng, "bfloat16" if x_is_rounded else "float32", rows, length + GAP)
    out = rng.standard_normal((rows, OUT_FEATURES + GAP)).astype(np.float32)
    before = out.astype(np.float64)
    multiply_of(dtype, x_is_rounded)(
        weight.ctypes.data, OUT_FEATURES, length, x.ctypes.data, length + GAP, rows,
        out.ctypes.data, OUT_FEATURES + GAP, keep)
    expected = x_value[:, :length] @ weight_value.T + keep * before[:, :OUT_FEATURES]
    scale = (np.abs(x_value[:, :length]) @ np.abs(weight_value).T).max() + 1
    assert np.abs(out[:, :OUT_FEATURES] - expected).max() <= 5e-7 * scale
    np.testing.assert_array_equal(out[:, OUT_FEATURES:], before[:, OUT_FEATURES:])


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_elements(dtype, rows):
    for length in LENGTHS:
        for keep in (0, 1):
            check(dtype, rows, length, keep)


@pytest.mark.parametrize("rows", ROWS)
def test_blocks(rows):
    for length in (32, 352):
        for keep in (0, 1):
            check(BLOCKS, rows, length, keep)


@pytest.mark.skipif(not DOTS_BFLOAT16, reason="this CPU does not multiply bfloat16")
@pytest.mark.parametrize("rows", ROWS)
def test_rounded_rows_of_x(rows):
    for length in LENGTHS:
        for keep in (0, 1):
            check("bfloat16", rows, length, keep, x_is_rounded=True)
