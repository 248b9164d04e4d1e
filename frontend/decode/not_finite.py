"""Logits that are no numbers: why, as far as the weights tell, and what can be done."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from event_tensor.errors import NotFiniteError
from event_tensor.tensors import TensorSpec
from persistent_runtime.formats import format_of
from persistent_runtime.storage import as_array

CHUNK = 1 << 22  # elements that are looked at together, so that a large weight needs no copy


def not_finite_error(failed: Mapping[int, int], requests: int, dtype: str, kv_dtype: str,
                     weights: Iterable[TensorSpec], memory: Callable[[TensorSpec], Any]
                     ) -> NotFiniteError:
    """failed: prompt → new tokens it had when its next logits were not finite; requests: prompts of
    the launch; dtype, kv_dtype: of matrices and KV cache; weights: are searched for the cause, and
    `memory` says where each lies."""
    prompt, tokens = min(failed.items(), key=lambda item: item[1])
    where = f"of prompt {prompt} " if requests > 1 else ""
    return NotFiniteError(
        f"the logits {where}for new token {tokens + 1} (decode step {tokens}) are NaN or infinite; "
        + (damaged_weight(weights, memory) or overflow(dtype, kv_dtype)))


def damaged_weight(weights: Iterable[TensorSpec], memory: Callable[[TensorSpec], Any]
                   ) -> str | None:
    """What is wrong with the first weight that holds no numbers; None where all do."""
    for spec in weights:
        found = memory(spec)
        array = found if isinstance(found, np.ndarray) else as_array(found)
        nan, infinite = count_not_finite(array, spec.dtype)
        if nan or infinite:
            remedy = ("use --dtype bfloat16 or float32, or check the model"
                      if spec.dtype == "float16" else "download, convert or merge the model again")
            return (f"the weight {spec.name} holds {nan} NaN and {infinite} infinite values in "
                    f"{spec.dtype}: {remedy}")
    return None


def overflow(dtype: str, kv_dtype: str) -> str:
    if kv_dtype == "float16":
        option = "--dtype" if kv_dtype == dtype else "--kv-dtype"
        return ("all weights are finite, so a key or value probably exceeded 65504, the largest "
                f"float16: use {option} bfloat16 or float32")
    return ("all weights are finite, so an activation overflowed: check that the model and its "
            "config.json belong together")


def count_not_finite(array: npt.NDArray[Any], dtype: str) -> tuple[int, int]:
    """How many elements are NaN, and how many infinite."""
    rows, widened = array.reshape(-1, array.shape[-1]), format_of(dtype).dequantize
    nan = infinite = 0
    for first in range(0, len(rows), step := max(CHUNK // max(rows.shape[1], 1), 1)):
        part = widened(rows[first:first + step])
        if not np.isfinite(part).all():
            nan += int(np.count_nonzero(np.isnan(part)))
            infinite += int(np.count_nonzero(np.isinf(part)))
    return nan, infinite
