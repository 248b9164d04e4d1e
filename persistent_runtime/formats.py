"""The one table of formats: how the elements of a tensor lie in memory. `TensorSpec.dtype` names an
entry of it.

A format stores the elements of a row in blocks: single elements for float32, or, as quantised
weights are kept, for instance 32 integers that share a scale. A row is a tensor's last dimension;
it is whole blocks, and rows follow one another.

A new format needs an entry here (`register_format`) with its numpy reference, a block loader for
the CPU (`persistent_runtime.cpu.vectors.block_types.cpu_loader`) and one for the GPU
(`persistent_runtime.gpu.compile.stored.gpu_loader`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from event_tensor.errors import UserError
from event_tensor.tensors import TensorSpec

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Format:
    """How elements lie in memory.

    block_elements, block_bytes: of the smallest part that can be read by itself. storage: numpy's
    type of the memory, with one item per element, or bytes where a block has several elements.
    dequantize: stored rows [..., items] → float32 [..., elements], the reference for all loaders.
    tag: how safetensors and GGUF files spell it, "" where they do not have it. is_weight: whether
    decoders may store weights and KV caches so.
    """

    name: str
    block_elements: int
    block_bytes: int
    storage: np.dtype[Any]
    dequantize: Callable[[Array], Array]
    tag: str = ""
    is_weight: bool = True

    @property
    def is_elementwise(self) -> bool:
        """Whether each element can be read and written by itself."""
        return self.block_elements == 1

    def row_bytes(self, elements: int) -> int:
        """Bytes of a row of so many elements. Raises UserError where they are not whole blocks."""
        if elements % self.block_elements:
            raise UserError(
                f"a row of {elements} elements is not whole blocks of {self.block_elements}, as "
                f"{self.name} stores them; use another format")
        return elements // self.block_elements * self.block_bytes

    def stored_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape, in items of `storage`, of a tensor with this shape in elements."""
        if self.is_elementwise:
            return tuple(shape)
        return (*shape[:-1], self.row_bytes(shape[-1]))


def _widen_bfloat16(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _as_float32(elements: Array) -> Array:
    return elements.astype(np.float32)


_formats: dict[str, Format] = {}


def register_format(new: Format) -> Format:
    """Adds an entry to the table. Raises UserError where there is one of that name, or where its
    name cannot be part of a file's."""
    if not new.name.isidentifier():
        raise UserError(f"a format is called {new.name!r}; use letters, digits and underscores")
    if _formats.setdefault(new.name, new) is not new:
        raise UserError(f"there is a format {new.name!r} already; give this one another name")
    return new


FLOAT32 = register_format(Format("float32", 1, 4, np.dtype(np.float32), _as_float32, "F32"))
# numpy has no bfloat16; its bits are the upper half of a float32
BFLOAT16 = register_format(Format("bfloat16", 1, 2, np.dtype(np.uint16), _widen_bfloat16, "BF16"))
FLOAT16 = register_format(Format("float16", 1, 2, np.dtype(np.float16), _as_float32, "F16"))
INT32 = register_format(Format("int32", 1, 4, np.dtype(np.int32), _as_float32, is_weight=False))
INT64 = register_format(Format("int64", 1, 8, np.dtype(np.int64), _as_float32, is_weight=False))

# how weights and KV caches of a decoder may be stored, in the order in which messages name them
DTYPES = tuple(f.name for f in (FLOAT32, BFLOAT16, FLOAT16))
# as safetensors and GGUF files spell it → format
BY_TAG = {found.tag: found for found in _formats.values() if found.tag}


def format_of(name: str) -> Format:
    """The entry of that name; raises UserError where there is none."""
    try:
        return _formats[name]
    except KeyError:
        raise UserError(f"dtype {name!r} is not a format that is known; use one of "
                        f"{', '.join(_formats)}, or register_format") from None


def format_of_array(array: Array) -> Format:
    """The format whose single elements a numpy array of this type holds; raises UserError."""
    for found in _formats.values():
        if found.is_elementwise and found.storage == array.dtype:
            return found
    raise UserError(f"an array of {array.dtype} can hold several formats; say which one")


def shape_of(tensor: TensorSpec) -> tuple[int, ...]:
    """The shape of a tensor whose sizes are all known, as those of weights are."""
    return tuple(int(size.evaluate({})) for size in tensor.shape)


def row_bytes(tensor: TensorSpec) -> int:
    """Bytes of one row, the last dimension, of a tensor whose sizes are known."""
    return format_of(tensor.dtype).row_bytes(int(tensor.shape[-1].evaluate({})))


def stored_bytes(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor of this shape in elements."""
    return math.prod(shape[:-1]) * format_of(dtype).row_bytes(shape[-1] if shape else 1)


def tensor_bytes(tensor: TensorSpec) -> int:
    """Bytes of a tensor whose sizes are known."""
    return stored_bytes(shape_of(tensor), tensor.dtype)
