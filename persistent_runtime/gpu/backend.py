"""The CUDA backend: device memory and the Triton worker behind the common interface."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from event_tensor.device_function import DeviceFunction
from event_tensor.errors import UserError
from event_tensor.graph import Graph
from persistent_runtime.backends import Progress
from persistent_runtime.gpu.launch import GpuKernel
from persistent_runtime.gpu.memory import DeviceBuffers, DeviceMemory
from persistent_runtime.gpu.registry import configurations
from persistent_runtime.gpu.target import TILE_TARGETS
from scheduling.target import H200, Target

TILE_TARGET = "generic"


class CudaBackend:
    """One CTA per multiprocessor of the current device."""

    name = "cuda"

    def __init__(self) -> None:
        self._memory = DeviceMemory()

    def target(self, workers: int | None) -> Target:
        properties = torch.cuda.get_device_properties(self._memory.device)
        available = properties.multi_processor_count
        count = available if workers is None else workers
        if not 1 <= count <= available:
            raise UserError(f"workers is {count}; {properties.name} runs from 1 to {available}, "
                            f"one on each of its multiprocessors")
        return H200.with_workers(count)

    def buffers(self) -> DeviceBuffers:
        return DeviceBuffers(self._memory)

    def compile(self, graph: Graph, functions: Sequence[DeviceFunction], dtype: str,
                workers: int, progress: Progress | None) -> GpuKernel:
        return GpuKernel(functions, dtype, workers, progress,
                         configured=configurations(graph, dtype, target=TILE_TARGET),
                         num_warps=TILE_TARGETS[TILE_TARGET].num_warps, memory=self._memory)
