"""How elements lie in memory: as numpy arrays, which have no bfloat16, or as torch tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")  # of weights
# dtype name → numpy type with the same storage
STORAGE_DTYPE: dict[str, Any] = {
    "float32": np.float32, "bfloat16": np.uint16, "float16": np.float16,
    "int32": np.int32, "int64": np.int64}


def torch_dtype(dtype: str) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, dtype)
    return found


def as_tensor(array: npt.NDArray[Any], dtype: str) -> torch.Tensor:
    """The same memory as a torch tensor of that dtype."""
    import torch

    signed = array.view(np.int16) if dtype == "bfloat16" else array
    return torch.from_numpy(signed).view(torch_dtype(dtype))


def as_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The same memory as a numpy array; a copy where it is another device's."""
    import torch

    tensor = tensor.detach().cpu()
    is_bfloat16 = tensor.dtype == torch.bfloat16
    return tensor.view(torch.int16).numpy().view(np.uint16) if is_bfloat16 else tensor.numpy()


def converted(array: npt.NDArray[Any], dtype: str, wanted: str) -> npt.NDArray[Any]:
    """Elements of one dtype as those of another, rounded to the nearest; itself where it is the
    same."""
    if dtype == wanted:
        return array
    return as_array(as_tensor(np.ascontiguousarray(array), dtype).to(torch_dtype(wanted)))
