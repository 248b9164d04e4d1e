"""What tests of bodies share: stored tensors, shapes, float64 references and how close is close.

`run_tile` is the CPU's; test_gpu_interpreter.py and test_gpu_device.py put another in its place.
"""

import numpy as np
import torch

from persistent_runtime import formats
from persistent_runtime.cpu.bodies.linear import ROUNDED_ROWS
from persistent_runtime.cpu.single_tile import run_tile
from persistent_runtime.cpu.vectors.emit import CONVERTS_FLOAT16, DOTS_BFLOAT16
from persistent_runtime.rows import layout

DTYPES = [dtype for dtype in formats.DTYPES if dtype != "float16" or CONVERTS_FLOAT16]
TORCH = {name: getattr(torch, name) for name in DTYPES}
# the relative spacing of each type, for results that are stored in it
SPACING = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


def stored(values, dtype):
    """(array as bodies read it, the same values in float64)"""
    rounded = torch.tensor(np.asarray(values, np.float32)).to(TORCH[dtype])
    as_read = {"float32": rounded, "bfloat16": rounded.view(torch.uint16),
               "float16": rounded.view(torch.int16)}[dtype]
    return as_read.numpy().copy(), rounded.double().numpy()


def from_storage(array, dtype):
    tensor = torch.tensor(array.view(np.int16) if dtype != "float32" else array)
    return (tensor if dtype == "float32" else tensor.view(TORCH[dtype])).double().numpy()


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def rms_normed(x, weight, eps):
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


ROUNDING = 2e-7  # of one operation, relative


def assert_close(actual, expected, terms, spread=0):
    """Float32 sums of `terms` products: a few units in the last place of their magnitude, and five
    times the standard deviation `spread` that rounded factors give each sum."""
    scale = np.abs(expected).max() + 1e-30
    error, bound = np.abs(actual - expected), scale * ROUNDING * (4 + terms**0.5) + 5 * spread
    assert (error <= bound).all(), f"{(error / bound).max()} times the bound"


def roundings(dtype, shape):
    """[rows, 1]: the largest relative error of x in a product; not 0 for many rows of a tile on a
    CPU that multiplies bfloat16. The bodies of GPUs, which run here as well, do not round."""
    rows, *_, tile_m, _ = shape
    of_tile = np.minimum(tile_m, rows - np.arange(rows) // tile_m * tile_m)[:, None]
    rounds = DOTS_BFLOAT16 and dtype == "bfloat16" and ".cpu." in run_tile.__module__
    return (of_tile >= ROUNDED_ROWS) * rounds * 2.0**-8


def spread_of(x, weight, rounding):
    """Standard deviation of x @ weight.T if each x has an error of up to `rounding`, at random."""
    return rounding / 3**0.5 * np.sqrt(x**2 @ (weight**2).T)


def run_all(declaration, dtype, values, counts, step=None):
    scratch_bytes = declaration.scratch_bytes.evaluate(
        {name: values[name] for name in declaration.scratch_bytes.symbols()})
    for tile in np.ndindex(*counts):
        run_tile(declaration, dtype, values, tile, scratch_bytes, step)


def ceil_div(a, b):
    return -(-a // b)


# (rows, in_features, out_features, tile_m, tile_n)
SHAPES = [(1, 64, 48, 1, 16), (1, 333, 37, 4, 10), (33, 100, 61, 32, 24), (33, 256, 64, 8, 64),
          (7, 19, 5, 16, 3), (64, 128, 130, 64, 64), (150, 64, 48, 256, 16)]


def linear_tiles(shape):
    rows, in_features, out_features, tile_m, tile_n = shape
    parameters = {"tile_m": tile_m, "tile_n": tile_n, "in_features": in_features,
                  "row_bytes": 2 * in_features}
    return parameters, (ceil_div(rows, tile_m), ceil_div(out_features, tile_n))


def greedy_requests(requests, vocab, max_context=16, logit_rows=1):
    """Operands of select_token that greedy requests without log-probabilities leave alone."""
    sampling = np.zeros((requests, layout.SAMPLING_WORDS), np.float32)
    sampling[:, layout.TOP_P] = sampling[:, layout.REPETITION_PENALTY] = 1
    return {"logits": np.full((logit_rows, vocab), np.nan, np.float32),
            "scores": np.zeros((logit_rows, 2, vocab), np.float32), "sampling": sampling,
            "seed": np.zeros(requests, np.int64),
            "processors": np.zeros((requests, layout.PROCESSORS_WORDS), np.int32),
            "biases": np.zeros((1, layout.BIAS_WORDS), np.int32),
            "bias_prefixes": np.zeros(1, np.int32),
            "token_logprob": np.zeros((requests, max_context), np.float32)}


EPS = 1e-6


class Rope:
    """Rotary tables and norms of heads, and what they make of heads."""

    def __init__(self, rng, dtype, head_dim, max_context, with_norm):
        angles = rng.uniform(0, 6, (max_context, head_dim // 2))
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        self.with_norm = with_norm
        (q_norm, self.q_scale), (k_norm, self.k_scale) = (
            stored(1 + 0.1 * normal(rng, head_dim), dtype) for _ in range(2))
        self.operands = {"q_norm": q_norm if with_norm else None,
                         "k_norm": k_norm if with_norm else None, "cos": self.cos,
                         "sin": self.sin, "eps": EPS}

    def rotated(self, x, scale, positions):
        """x: [rows, heads, head_dim]"""
        x = rms_normed(x, scale, EPS) if self.with_norm else x.astype(np.float64)
        a, b = np.split(x, 2, axis=-1)
        c, s = (table[positions][:, None].astype(np.float64) for table in (self.cos, self.sin))
        return np.concatenate([a * c - b * s, b * c + a * s], -1)


def without(operands, *names):
    return {name: value for name, value in operands.items() if name not in names}
