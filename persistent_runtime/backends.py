"""Backends: where a megakernel runs. Each brings its target record, its memory and its kernel."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any, Protocol

from event_tensor.errors import UserError
from event_tensor.graph import Graph
from persistent_runtime.cpu.cores import GIVEN, available_cores, check_workers, find_cores
from persistent_runtime.cpu.launch import CpuKernel
from persistent_runtime.function_table import FunctionTable
from persistent_runtime.launch.launch import Kernel, Progress
from persistent_runtime.launch.memory import Buffers
from scheduling.target import Target, generic_cpu

DRIVER_DEVICES = "/dev/nvidiactl", "/dev/dxg"  # where the driver may lie where only torch finds it


class Backend(Protocol):
    name: str

    def target(self, workers: int | None) -> Target:
        """The machine with this many workers; by default as many as it can run at once."""
        ...

    def workers_from(self, workers: int | None) -> str:
        """What decides the number of workers of `target(workers)`, for reports."""
        ...

    def buffers(self) -> Any:
        """Memory for tensors, with the interface of `Buffers`."""
        ...

    def compile(self, graph: Graph, kinds: FunctionTable, target: Target,
                progress: Progress | None, is_dynamic: bool) -> Kernel:
        """kinds: the function table to compile, of the graph's calls; target: what the kernel's
        schedules are made for; is_dynamic: whether they may queue tasks or have edges that read a
        tensor."""
        ...


class CpuBackend:
    """Threads of this process; numba."""

    name = "cpu"

    def target(self, workers: int | None) -> Target:
        return generic_cpu(available_cores() if workers is None else check_workers(workers))

    def workers_from(self, workers: int | None) -> str:
        return find_cores().reason if workers is None else GIVEN

    def buffers(self) -> Buffers:
        return Buffers()

    def compile(self, graph: Graph, kinds: FunctionTable, target: Target,
                progress: Progress | None, is_dynamic: bool) -> CpuKernel:
        return CpuKernel(kinds, target.workers, progress)


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
    if name == "cpu":
        return CpuBackend()
    if name not in ("auto", "cuda"):
        raise UserError(f"backend {name!r} is not available; use auto, cpu or cuda")
    if not is_cuda(name):
        if name == "auto":
            return CpuBackend()
        raise UserError("backend cuda needs a GPU that torch can see, and there is none; use "
                        "--backend cpu")
    from persistent_runtime.gpu.backend import CudaBackend

    return CudaBackend()
