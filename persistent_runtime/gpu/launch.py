"""One launch on the GPU: a cooperative grid of one CTA per SM, a way to watch and to end it.

Everything the kernel touches lies in device memory. What the host watches it reads with small
copies on a stream of its own, which copy engines serve while the kernel holds every SM: control
tensors that the kernel reads in every layer would cost a trip over the bus each if they lay in
host memory. The abort flag travels the other way in the same manner.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from event_tensor.device_function import DeviceFunction
from event_tensor.errors import UserError
from persistent_runtime import layout
from persistent_runtime.encode import EncodedSchedule
from persistent_runtime.gpu.compile_only import compiler_options, make_room
from persistent_runtime.gpu.memory import DeviceMemory
from persistent_runtime.gpu.ptx import own_pass
from persistent_runtime.gpu.registry import kernel_tables
from persistent_runtime.gpu.ring import ring_bytes
from persistent_runtime.gpu.target import TileTarget
from persistent_runtime.gpu.worker import run_worker
from persistent_runtime.records import (
    Segment,
    describe_launch,
    fill_segment,
    named_task_counts,
    new_counters,
    outstanding,
    queue_capacity,
)
from persistent_runtime.trace import SegmentTrace, trace_segment, trace_words

LEAVE_S = 10.0  # an aborted launch that takes longer is not ours to wait for


class GpuKernel:
    """The compiled worker. One kernel serves every schedule and shape of a graph.

    configured: device function name → configuration, from `registry.configurations`, and tiles:
    the entry of `TILE_TARGETS` that it was made for. memory: where the tensors live that launches
    read and write. is_dynamic: whether schedules may queue tasks or read tensors in their edges;
    prefetches: whether their rows ask for weights ahead of time.
    """

    def __init__(self, functions: Sequence[DeviceFunction], dtype: str, num_workers: int,
                 progress: Callable[[int, int], None] | None = None, *,
                 configured: Mapping[str, Any], tiles: TileTarget, memory: DeviceMemory,
                 is_dynamic: bool = True, prefetches: bool = False) -> None:
        self.num_workers = num_workers
        self.memory = memory
        self.kinds = {function.name: k for k, function in enumerate(functions)}
        bodies, values, fingerprint = kernel_tables(functions, configured)
        self.streams_weights = tiles.ring_pieces > 0
        self._constants = (bodies, values, fingerprint, prefetches and tiles.bulk_prefetch,
                           tiles.ring_pieces, is_dynamic, False)
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
            progress(len(functions), len(functions))

    def sources(self) -> dict[str, str]:
        """File name → text of what runs: the worker and its assembly."""
        return {"worker.py": Path(sys.modules[run_worker.fn.__module__].__file__).read_text(
                    encoding="utf-8"),
                "worker.ptx": self._compiled.asm["ptx"]}

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

    def launch(self, segments: Sequence[Segment], scratch_bytes: int = 0, *,
               finished: npt.NDArray[np.int32] | None = None, timeout_s: float = 30.0,
               trace_steps: int = 0) -> GpuLaunch:
        """Start the workers and return at once.

        `finished` [requests]: host side of a control tensor; the launch ends after the step in
        which all its entries are set. `timeout_s`: how long a worker may wait for one event.
        `trace_steps`: of each segment, how many steps leave trace records (`GpuLaunch.trace`).
        """
        return GpuLaunch(self, segments, finished, timeout_s, trace_steps)

    def schedule_on_device(self, encoded: EncodedSchedule) -> dict[int, torch.Tensor]:
        """Word of the segment record → its array, copied once per schedule."""
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


class GpuLaunch:
    """A running launch. `wait` returns when it is done and raises what went wrong."""

    def __init__(self, kernel: GpuKernel, segments: Sequence[Segment],
                 finished: npt.NDArray[np.int32] | None, timeout_s: float, trace_steps: int
                 ) -> None:
        memory = self._memory = kernel.memory
        self._segments = list(segments)
        self._finished = finished
        self._keep_alive: list[Any] = [kernel]
        memory.push_control()
        control = np.zeros(layout.CONTROL_WORDS + kernel.num_workers * layout.EVENT_STRIDE,
                           np.int32)
        control[layout.OUTSTANDING] = outstanding(self._segments, kernel.num_workers)
        self._control = memory.upload(control)
        self._stuck = memory.zeros(kernel.num_workers * layout.STUCK_WORDS, np.int64)
        self._counters: list[dict[int, torch.Tensor]] = []
        self._traces: list[torch.Tensor] = []
        records = np.zeros((max(len(segments), 1), layout.SEGMENT_WORDS), np.int64)
        for k, segment in enumerate(self._segments):
            self._counters.append({word: memory.zeros(shape, np.int32) for word, shape in
                                   new_counters(segment.encoded, kernel.num_workers).items()})
            on_device = kernel.schedule_on_device(segment.encoded) | self._counters[-1] | {
                layout.ARGUMENT_TABLE: memory.upload(segment.arguments)}
            self._keep_alive.append(on_device)
            fill_segment(records[k], segment, {w: t.data_ptr() for w, t in on_device.items()})
            if trace_steps:
                self._traces.append(memory.zeros(trace_words(segment, trace_steps), np.int64))
                trace_segment(records[k], segment, trace_steps, self._traces[-1].data_ptr())
        on_device_records = memory.upload(records)
        record = np.zeros(layout.LAUNCH_WORDS, np.int64)
        record[layout.NUM_WORKERS] = kernel.num_workers
        record[layout.NUM_SEGMENTS] = len(self._segments)
        record[layout.SEGMENTS] = on_device_records.data_ptr()
        record[layout.CONTROL] = self._control.data_ptr()
        record[layout.STUCK] = self._stuck.data_ptr()
        capacity = queue_capacity(self._segments)
        slots = memory.zeros(capacity, np.int64)
        record[layout.QUEUE] = slots.data_ptr()
        record[layout.QUEUE_CAPACITY] = capacity
        record[layout.TIMEOUT_NS] = int(timeout_s * 1e9)
        if finished is not None:
            record[layout.FINISHED] = memory.device_side(finished).data_ptr()
            record[layout.NUM_REQUESTS] = len(finished)
        launch_record = memory.upload(record)
        self._keep_alive += [on_device_records, launch_record, slots]
        self._done = kernel.start(launch_record, memory.stream)

    @property
    def is_running(self) -> bool:
        """Whether workers are still at it; what they have written to control tensors so far is
        on the host when this returns."""
        running = not self._done.query()  # asked before the copy, so the last tokens are in it
        self._memory.pull_control()
        return running

    def finish(self, request: int) -> None:
        """Have a request end with the step that is running."""
        if self._finished is not None and not self._done.query():
            self._memory.write(self._memory.device_side(self._finished), request, 1)

    def abort(self) -> None:
        """Ask every worker to leave; returns when they have, within one step's time."""
        if not self._done.query():
            self._memory.write(self._control, layout.ABORT, layout.ABORT_REQUESTED)
            deadline = time.monotonic() + LEAVE_S
            while not self._done.query() and time.monotonic() < deadline:
                time.sleep(1e-4)
        self._memory.pull_control()

    def wait(self, poll_s: float = 0.002) -> None:
        """Block until the launch is done; Ctrl-C ends it. Raises DeadlockError."""
        try:
            while not self._done.query():
                time.sleep(poll_s)
        except BaseException:
            self.abort()
            raise
        self._memory.pull_control()
        self.check()

    def trace(self) -> list[SegmentTrace]:
        """What each segment's traced steps recorded, once the launch is done."""
        return [SegmentTrace.of(segment, self._memory.download(words))
                for segment, words in zip(self._segments, self._traces, strict=True)]

    def task_counts(self) -> list[dict[str, tuple[int, int]]]:
        """Per segment: call → (queued tasks that ran, rows whose tile no event released)."""
        return named_task_counts(self._segments, self._downloaded(layout.TASK_COUNTS))

    def _downloaded(self, word: int) -> list[npt.NDArray[np.int32]]:
        return [self._memory.download(of_segment[word]) for of_segment in self._counters]

    def check(self) -> None:
        """Raise DeadlockError if the workers gave up waiting."""
        if not self._done.query():
            return
        if int(self._memory.download(self._control)[layout.ABORT]) == layout.ABORT_TIMEOUT:
            stuck = self._memory.download(self._stuck).reshape(-1, layout.STUCK_WORDS)
            raise describe_launch(stuck, self._segments, self._downloaded(layout.TASK_COUNTS),
                                  self._downloaded(layout.EVENTS))
