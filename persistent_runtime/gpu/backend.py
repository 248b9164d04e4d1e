"""The CUDA backend: device memory and the Triton worker behind the common interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import triton

from event_tensor.errors import UserError
from event_tensor.graph import Call
from persistent_runtime.backend import GIVEN
from persistent_runtime.function_table import FunctionTable
from persistent_runtime.gpu.compile.compile_only import device_capability
from persistent_runtime.gpu.compile.registry import configurations
from persistent_runtime.gpu.launch import GpuKernel
from persistent_runtime.gpu.memory import DeviceBuffers, DeviceMemory
from persistent_runtime.gpu.target import TILE_TARGETS, tile_target_of
from persistent_runtime.launch.launch import Kernel, Progress
from scheduling.target import H200, Target


class CudaBackend:
    """One CTA per multiprocessor of the current device."""

    name = "cuda"

    def __init__(self) -> None:
        self._memory = DeviceMemory()
        self._tile_target = tile_target_of(device_capability(self._memory.device))

    def target(self, workers: int | None) -> Target:
        properties = torch.cuda.get_device_properties(self._memory.device)
        available = properties.multi_processor_count
        count = available if workers is None else workers
        if not 1 <= count <= available:
            raise UserError(f"workers is {count}; {properties.name} runs from 1 to {available}, "
                            f"one on each of its multiprocessors")
        target = replace(H200, name=properties.name, workers=available)
        clock_khz = getattr(properties, "memory_clock_rate", 0)
        if clock_khz:  # double data rate; kHz times bytes is a millionth of GB/s
            nominal = 2 * clock_khz * properties.memory_bus_width / 8 / 1e6
            target = replace(target, bandwidth_gb_s=nominal)
        return target.with_workers(count)

    def workers_from(self, workers: int | None) -> str:
        return "multiprocessors of the device" if workers is None else GIVEN

    def cache_directory(self) -> str:
        return str(triton.knobs.cache.dir)

    def buffers(self) -> DeviceBuffers:
        return DeviceBuffers(self._memory)

    def compile(self, calls: Sequence[Call], kinds: FunctionTable, target: Target,
                progress: Progress | None, is_dynamic: bool) -> GpuKernel:
        return GpuKernel(kinds, target.workers, progress,
                         configured=configurations(calls, kinds, target=self._tile_target),
                         tiles=TILE_TARGETS[self._tile_target], memory=self._memory,
                         is_dynamic=is_dynamic)

    def measured(self, kernel: Kernel, target: Target) -> Target:
        """A GPU's record is a constant."""
        return target
