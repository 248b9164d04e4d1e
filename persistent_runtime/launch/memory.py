"""Memory behind tensors: addresses for the argument records, and who keeps them alive."""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from event_tensor.errors import UserError
from event_tensor.tensors import TensorSpec
from persistent_runtime.formats import format_of
from persistent_runtime.storage import torch_dtype

PAGE = 4096


def allocate(shape: tuple[int, ...], dtype: str) -> npt.NDArray[Any]:
    """Zeroed, page-aligned memory that the system hands out page by page as it is touched: an array
    of a format's items for a tensor of this shape in elements.

    Raises MemoryError or OSError where the system refuses it; `refusals.reserving` says what for.
    """
    stored = format_of(dtype)
    items = stored.stored_shape(shape)
    count = math.prod(items)
    size = max(count * stored.storage.itemsize, 1) + PAGE
    if size > sys.maxsize:
        raise MemoryError(f"{size} bytes are more than any address space has")
    block = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(block, stored.storage, count).reshape(items)


class HostMemory:
    """`launch.Memory` that workers share with the host, forked ones too."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
        return allocate(shape, np.dtype(dtype).name)

    def upload(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A copy, where forked workers write to what the host reads."""
        copy = self.zeros(array.shape, array.dtype)
        copy[...] = array
        return copy

    def download(self, memory: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return memory

    def address(self, memory: npt.NDArray[Any]) -> int:
        return int(memory.ctypes.data)

    def write(self, memory: npt.NDArray[Any], index: int, value: int) -> None:
        memory[index] = value

    def device_side(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return array

    def push_control(self) -> None:
        """Nothing: host and workers see the same memory."""

    pull_control = push_control


class Buffers:
    """Tensor → address. Accepts numpy arrays and torch tensors and keeps them alive."""

    def __init__(self) -> None:
        self.addresses: dict[TensorSpec, int] = {}
        self._owners: dict[TensorSpec, Any] = {}

    def allocate(self, tensor: TensorSpec, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Fresh zeroed memory for a tensor."""
        array = allocate(shape, tensor.dtype)
        self.bind(tensor, array)
        return array

    def bind(self, tensor: TensorSpec, memory: Any) -> None:
        """Use `memory` (contiguous numpy array or torch tensor) for a tensor; a copy of it where it
        lies on a GPU.

        Raises UserError when its dtype is another or it is not contiguous.
        """
        if isinstance(memory, np.ndarray):
            dtype = memory.dtype.name
            fits = format_of(tensor.dtype).storage == memory.dtype
            contiguous, address = memory.flags.c_contiguous, int(memory.ctypes.data)
        else:
            memory = memory.cpu()
            dtype = str(memory.dtype).removeprefix("torch.")
            fits, contiguous, address = (
                memory.dtype == torch_dtype(tensor.dtype), memory.is_contiguous(),
                int(memory.data_ptr()))
        if not fits:
            raise UserError(f"tensor {tensor.name!r} is {tensor.dtype}, the memory given for it is "
                            f"{dtype}; convert it first")
        if not contiguous:
            raise UserError(f"the memory given for tensor {tensor.name!r} is not contiguous; "
                            f"make a contiguous copy first")
        self.addresses[tensor] = address
        self._owners[tensor] = memory

    def array(self, tensor: TensorSpec) -> Any:
        """The memory bound to a tensor."""
        return self._owners[tensor]

    def owners(self) -> Mapping[TensorSpec, Any]:
        return self._owners
