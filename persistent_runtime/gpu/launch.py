"""One launch on the GPU: a cooperative grid of one CTA per SM, a way to watch and to end it.

Everything the kernel touches lies in device memory. What the host watches it reads with small
copies on a stream of its own, which copy engines serve while the kernel holds every SM: control
tensors that the kernel reads in every layer would cost a trip over the bus each if they lay in
host memory. The abort flag travels the other way in the same manner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from event_tensor.errors import UserError
from persistent_runtime.function_table import FunctionTable, Variant
from persistent_runtime.gpu.compile.compile_only import compiler_options, make_room
from persistent_runtime.gpu.compile.ptx import own_pass
from persistent_runtime.gpu.compile.registry import kernel_tables
from persistent_runtime.gpu.memory import DeviceMemory
from persistent_runtime.gpu.ring.kernel import RingKernel
from persistent_runtime.gpu.ring.ring import ring_bytes
from persistent_runtime.gpu.target import TileTarget
from persistent_runtime.gpu.worker.worker import run_worker, worker_source
from persistent_runtime.launch.countdown import Countdown
from persistent_runtime.launch.launch import Launch
from persistent_runtime.rows import layout
from persistent_runtime.rows.encode import EncodedSchedule
from persistent_runtime.rows.segment import Segment

LEAVE_S = 10.0  # an aborted launch that takes longer is not ours to wait for


class GpuLaunch(Launch):
    """A cooperative grid, one CTA per worker."""

    def __init__(self, kernel: GpuKernel, segments: Sequence[Segment],
                 finished: npt.NDArray[np.int32] | None, timeout_s: float, trace_steps: int
                 ) -> None:
        super().__init__(kernel, segments, finished, timeout_s, trace_steps)
        record = kernel.memory.upload(self._record)
        self._keep_alive.append(record)
        self._done = kernel.start(record, kernel.memory.stream)

    @property
    def has_ended(self) -> bool:
        return bool(self._done.query())

    def _join(self) -> None:
        countdown = Countdown(LEAVE_S)
        while not self._done.query() and not countdown.is_over:
            time.sleep(1e-4)


class GpuKernel(RingKernel):
    """The Triton worker, compiled for the device.

    configured: what `registry.configurations` makes of the function table, and tiles:
    the entry of `TILE_TARGETS` that it was made for. memory: where the tensors live that launches
    read and write. is_dynamic: whether schedules may queue tasks or read tensors in their edges.
    """

    launch_type = GpuLaunch
    memory: DeviceMemory

    def __init__(self, kinds: FunctionTable, num_workers: int,
                 progress: Callable[[int, int], None] | None = None, *,
                 configured: Mapping[Variant, Any], tiles: TileTarget, memory: DeviceMemory,
                 is_dynamic: bool = True) -> None:
        self.num_workers = num_workers
        self.memory = memory
        self.kinds = kinds
        bodies, values, fingerprint = kernel_tables(configured)
        self.ring_pieces, self.configured = tiles.ring_pieces, configured
        self._constants = (bodies, values, fingerprint, tiles.ring_pieces, is_dynamic, False)
        self._options = compiler_options(tiles.num_warps)
        self._stream = torch.cuda.Stream(memory.device)
        self._schedules: dict[EncodedSchedule, dict[int, torch.Tensor]] = {}
        self._check_resident()
        with torch.cuda.device(memory.device), own_pass():
            record = torch.zeros(layout.LAUNCH_WORDS, dtype=torch.int64, device=memory.device)
            self._compiled = run_worker.warmup(record, 0, *self._constants, grid=(num_workers,),
                                               **self._options)
        make_room(self._compiled, ring_bytes(tiles.ring_pieces))
        if progress:
            progress(len(kinds), len(kinds))

    def sources(self) -> dict[str, str]:
        return {"worker.py": worker_source(), "worker.ptx": self._compiled.asm["ptx"]}

    def resources(self) -> dict[str, int]:
        """Registers per thread, spilled bytes per thread, and shared memory of a worker."""
        self._compiled._init_handles()  # Triton reads these off a kernel when it first runs
        return {"registers": self._compiled.n_regs, "spill_bytes": self._compiled.n_spills,
                "shared_bytes": self._compiled.metadata.shared}

    def _check_resident(self) -> None:
        properties = torch.cuda.get_device_properties(self.memory.device)
        if self.num_workers > properties.multi_processor_count:
            raise UserError(
                f"workers is {self.num_workers}, but {properties.name} has "
                f"{properties.multi_processor_count} multiprocessors and every worker occupies "
                f"one; give at most {properties.multi_processor_count}")

    def arrays_of(self, encoded: EncodedSchedule) -> dict[int, torch.Tensor]:
        """Copied to the device once per schedule."""
        if encoded not in self._schedules:
            self._schedules[encoded] = {word: self.memory.upload(array) for word, array
                                        in encoded.arrays().items()}
        return self._schedules[encoded]

    def start(self, record: torch.Tensor, after: torch.cuda.Stream) -> torch.cuda.Event:
        """Puts the kernel on its own stream, behind the uploads; returns the event of its end."""
        self._stream.wait_stream(after)
        self._stream.wait_stream(torch.cuda.default_stream(self.memory.device))  # zeroed tensors
        with torch.cuda.device(self.memory.device), torch.cuda.stream(self._stream), own_pass():
            # cooperative: the driver refuses a grid that is not resident instead of letting it hang
            run_worker[(self.num_workers,)](record, 0, *self._constants, **self._options)
            done = torch.cuda.Event()
            done.record(self._stream)
        return done
