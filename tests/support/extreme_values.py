"""Numbers that bodies must survive: NaN, infinities, the largest, the smallest, zeros, mixtures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

NAN, INF = float("nan"), float("inf")
LARGEST, SMALLEST = float(np.finfo(np.float32).max), 1e-45  # the latter is subnormal
VALUES = np.float32([NAN, INF, -INF, LARGEST, -LARGEST, SMALLEST, -SMALLEST, 1e-38, 0.0, -0.0,
                     1.0, -1.0, 88.0, 2.0**31, -(2.0**63)])
TEMPERATURES = (0.0, SMALLEST, 1e-38, 1e-3, 1.0, LARGEST, INF, NAN, -1.0, -0.0)
TOP_KS = (0.0, 1.0, 2.0, 5.0, 40.0, 1000.0, 2.0**24, 1e30, INF, NAN, -1.0, -1e30, -INF)
FRACTIONS = (1.0, 0.0, NAN, INF, -INF, 0.5, 0.9, SMALLEST, -1.0, 2.0)  # top_p, min_p
PENALTIES = (1.0, 0.0, INF, NAN, SMALLEST, LARGEST, -1.0, 1.3)
SEEDS = (0, 1, -1, 2**31, 2**63 - 1, -(2**63))


def ordinary(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def constant(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return np.full(shape, rng.choice(VALUES), np.float32)


def mixed(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.choice(VALUES, shape)


def seldom(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Ordinary numbers with one of the values here and there."""
    return np.where(rng.random(shape) < 0.1, mixed(rng, *shape), ordinary(rng, *shape))


def row_by_row(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Whole rows of NaN, of an infinity, … ; the last row is of ordinary numbers."""
    rows = np.broadcast_to(mixed(rng, *shape[:-1])[..., None], shape).copy()
    if rows.size:
        rows.reshape(-1, shape[-1])[-1] = ordinary(rng, shape[-1])
    return rows


def any_bits(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 2**32, shape, np.uint32).view(np.float32)


KINDS = (ordinary, constant, mixed, seldom, row_by_row, any_bits)


def extreme(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32 of one of KINDS."""
    return np.ascontiguousarray(KINDS[rng.integers(len(KINDS))](rng, *shape), np.float32)


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 rounded to weights of this dtype, in the type that bodies read."""
    rounded = torch.from_numpy(values).to(getattr(torch, dtype))
    views: dict[str, Any] = {"bfloat16": torch.uint16, "float16": torch.int16}
    return (rounded.view(views[dtype]) if dtype in views else rounded).numpy()


def extreme_as(rng: np.random.Generator, dtype: str, *shape: int) -> np.ndarray:
    return stored(extreme(rng, *shape), dtype)


def pick(rng: np.random.Generator, values: Any) -> Any:
    return values[rng.integers(len(values))]
