"""Which backend a name means on this machine. What a backend needs is imported with it alone."""

from __future__ import annotations

import ctypes
import os
import sys

from event_tensor.errors import UserError
from persistent_runtime.backend import Backend

DRIVER_DEVICES = "/dev/nvidiactl", "/dev/dxg"  # where the driver may lie where only torch finds it


def has_cuda_driver() -> bool:
    """Whether anything speaks for a driver; if nothing does torch need not be asked."""
    if "torch" in sys.modules or any(os.path.exists(path) for path in DRIVER_DEVICES):
        return True
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def may_be_cuda(name: str) -> bool:
    """Whether torch has to be asked before this name of a backend is CUDA or not."""
    return name == "cuda" or name == "auto" and has_cuda_driver()


def is_cuda(name: str) -> bool:
    """Whether this name of a backend is CUDA here: torch sees a device."""
    if not may_be_cuda(name):
        return False
    import torch

    return torch.cuda.is_available()


def find_backend(name: str) -> Backend:
    """`cpu`, `cuda`, or `auto`: CUDA where torch sees a device. Raises UserError."""
    if name not in ("auto", "cpu", "cuda"):
        raise UserError(f"backend {name!r} is not available; use auto, cpu or cuda")
    if is_cuda(name):
        from persistent_runtime.gpu.backend import CudaBackend

        return CudaBackend()
    if name == "cuda":
        raise UserError("backend cuda needs a GPU that torch can see, and there is none; use "
                        "--backend cpu")
    from persistent_runtime.cpu.backend import CpuBackend

    return CpuBackend()
