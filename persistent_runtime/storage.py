"""Elements as numpy arrays, which have no bfloat16, and as torch tensors over the same memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from persistent_runtime.formats import BFLOAT16, format_of

if TYPE_CHECKING:
    import torch


def torch_dtype(dtype: str) -> torch.dtype:
    """Torch's type for a format of single elements; bytes for one of blocks."""
    import torch

    name = dtype if format_of(dtype).is_elementwise else "uint8"
    found: torch.dtype = getattr(torch, name)
    return found


def as_tensor(array: npt.NDArray[Any], dtype: str) -> torch.Tensor:
    """The same memory as a torch tensor of that dtype."""
    import torch

    signed = array.view(np.int16) if dtype == BFLOAT16.name else array
    return torch.from_numpy(signed).view(torch_dtype(dtype))


def as_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The same memory as a numpy array; a copy where it is another device's."""
    import torch

    tensor = tensor.detach().cpu()
    is_bfloat16 = tensor.dtype == torch.bfloat16
    if is_bfloat16:
        return tensor.view(torch.int16).numpy().view(BFLOAT16.storage)
    return tensor.numpy()


def converted(array: npt.NDArray[Any], dtype: str, wanted: str) -> npt.NDArray[Any]:
    """Elements of one dtype as those of another, rounded to the nearest; itself where it is the
    same."""
    if dtype == wanted:
        return array
    return as_array(as_tensor(np.ascontiguousarray(array), dtype).to(torch_dtype(wanted)))
