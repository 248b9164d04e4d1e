"""The CPU backend: threads of this process and the numba worker behind the common interface."""

from __future__ import annotations

from collections.abc import Sequence

from event_tensor.graph import Call
from persistent_runtime.backend import GIVEN
from persistent_runtime.cpu.calibration.record import calibrated
from persistent_runtime.cpu.compile.disk_cache import FUNCTIONS
from persistent_runtime.cpu.cores import available_cores, check_workers, find_cores
from persistent_runtime.cpu.launch import CpuKernel
from persistent_runtime.function_table import FunctionTable
from persistent_runtime.launch.launch import Kernel, Progress
from persistent_runtime.launch.memory import Buffers
from scheduling.target import Target, generic_cpu


class CpuBackend:
    """Threads of this process; numba."""

    name = "cpu"

    def target(self, workers: int | None) -> Target:
        return generic_cpu(available_cores() if workers is None else check_workers(workers))

    def workers_from(self, workers: int | None) -> str:
        return find_cores().reason if workers is None else GIVEN

    def cache_directory(self) -> str:
        return str(FUNCTIONS.directory())

    def buffers(self) -> Buffers:
        return Buffers()

    def compile(self, calls: Sequence[Call], kinds: FunctionTable, target: Target,
                progress: Progress | None, is_dynamic: bool) -> CpuKernel:
        return CpuKernel(kinds, target.workers, progress)

    def measured(self, kernel: Kernel, target: Target) -> Target:
        return calibrated(kernel, target) if isinstance(kernel, CpuKernel) else target
