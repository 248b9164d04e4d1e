"""The GPU worker without a GPU: the same source under Triton's interpreter, a process per worker.

The interpreter runs the programs of a grid one after another, so a wait for a later one would
never end. Here every worker is a forked process that runs one program, over memory they share;
atomics are those of the host. TRITON_INTERPRET=1 must be set before triton is imported.

Everything workers write must be shared memory: `persistent_runtime.buffers.allocate` is.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
from triton.language import standard
from triton.runtime import interpreter

from event_tensor.device_function import DeviceFunction
from event_tensor.errors import EventTensorError, UserError
from event_tensor.graph import Graph
from persistent_runtime import layout
from persistent_runtime.buffers import Buffers, allocate
from persistent_runtime.encode import address_of
from persistent_runtime.gpu import actions, arguments, finish, queue, rows, streamed, sync
from persistent_runtime.gpu.registry import configurations, kernel_tables
from persistent_runtime.gpu.worker import run_worker
from persistent_runtime.records import (
    Segment,
    WatchedLaunch,
    describe_launch,
    fill_segment,
    named_task_counts,
    new_counters,
    outstanding,
    queue_capacity,
)
from persistent_runtime.trace import SegmentTrace, trace_segment, trace_words
from scheduling.target import H200, Target

LEAVE_S = 5.0  # what an aborted worker may take for the task it is in


class InterpretedBackend:
    """`persistent_runtime.backends.Backend`: the GPU worker, at a hundred-thousandth the speed."""

    name = "interpreter"
    ring_pieces = 0

    def target(self, workers: int | None) -> Target:
        return H200.with_workers(4 if workers is None else workers)

    def buffers(self) -> Buffers:
        return Buffers()

    def compile(self, graph: Graph, functions: Sequence[DeviceFunction], dtype: str,
                target: Target, progress: Callable[[int, int], None] | None, is_dynamic: bool
                ) -> InterpretedKernel:
        configured = configurations(graph, dtype, interpreted=True, ring_pieces=self.ring_pieces)
        return InterpretedKernel(functions, dtype, target.workers, progress,
                                 configured=configured, is_dynamic=is_dynamic,
                                 ring_pieces=self.ring_pieces)


class InterpretedKernel:
    """The interface of `cpu.launch.CpuKernel`, run by the interpreter."""

    def __init__(self, functions: Sequence[DeviceFunction], dtype: str, num_workers: int,
                 progress: Callable[[int, int], None] | None = None, *,
                 configured: Mapping[str, Any], is_dynamic: bool = True,
                 ring_pieces: int = 0) -> None:
        if not triton.knobs.runtime.interpret:
            raise UserError("set TRITON_INTERPRET=1 before triton is imported to interpret kernels")
        self.num_workers, self.is_dynamic = num_workers, is_dynamic
        self.ring_pieces, self.streams_weights = ring_pieces, ring_pieces > 0
        self.kinds = {function.name: k for k, function in enumerate(functions)}
        self.bodies, self.configurations, self.fingerprint = kernel_tables(functions, configured)
        _rewrite_functions(self.bodies)
        if progress:
            progress(len(functions), len(functions))

    def launch(self, segments: Sequence[Segment], scratch_bytes: int = 0, *,
               finished: npt.NDArray[np.int32] | None = None, timeout_s: float = 30.0,
               trace_steps: int = 0) -> InterpretedLaunch:
        """Start the workers and return at once; see `GpuKernel.launch`."""
        return InterpretedLaunch(self, segments, finished, timeout_s, trace_steps)

    def call_worker(self, record: npt.NDArray[np.int64], worker: int) -> None:
        """Runs one worker to its end in this process."""
        patch_language_once()
        run_worker[(1,)](torch.from_numpy(record), worker, self.bodies, self.configurations,
                         self.fingerprint, PREFETCH=True, RING=self.ring_pieces,
                         DYNAMIC=self.is_dynamic, INTERPRETED=True)


def _rewrite_functions(bodies: Sequence[Any]) -> None:
    """Has the interpreter parse what the workers will call, once for all processes to come."""
    modules = {body.fn.__module__ for body in bodies} | {
        run_worker.fn.__module__, rows.__name__, sync.__name__, queue.__name__, actions.__name__,
        arguments.__name__, finish.__name__, streamed.__name__, standard.__name__}
    for name in modules:
        for value in list(vars(sys.modules[name]).values()):
            if isinstance(value, interpreter.InterpretedFunction):
                value.rewrite()


class _LastingPatch:
    """What a launch undoes at its end; here nothing."""

    def restore(self) -> None:
        pass


def patch_language_once() -> None:
    """Lets the interpreter patch Triton's language once, for good. It does so again at every call
    of a device function, which takes most of the time. For processes that only interpret."""
    original, patched = interpreter._patch_lang, set()

    def patch(function: Any) -> _LastingPatch:
        modules = {id(value) for value in function.__globals__.values()
                   if value is triton.language or value is triton.language.core}
        if not modules <= patched:
            patched.update(modules)
            original(function)
            # Triton 3.6 asks numpy for what current numpy refuses: an array of one as an index
            triton.language.tensor.__index__ = lambda self: int(self.handle.data.squeeze())
        return _LastingPatch()

    interpreter._patch_lang = patch


class InterpretedLaunch(WatchedLaunch):
    """A running launch. `wait` returns when it is done and raises what went wrong."""

    def __init__(self, kernel: InterpretedKernel, segments: Sequence[Segment],
                 finished: npt.NDArray[np.int32] | None, timeout_s: float, trace_steps: int
                 ) -> None:
        workers = kernel.num_workers
        self._segments = list(segments)
        self._control = allocate((layout.CONTROL_WORDS + workers * layout.EVENT_STRIDE,), "int32")
        self._control[layout.OUTSTANDING] = outstanding(self._segments, workers)
        self._stuck = allocate((workers, layout.STUCK_WORDS), "int64")
        records = allocate((max(len(self._segments), 1), layout.SEGMENT_WORDS), "int64")
        record = allocate((layout.LAUNCH_WORDS,), "int64")
        self._finished = finished
        capacity = queue_capacity(self._segments)
        slots = allocate((capacity,), "int64")
        self._keep_alive: list[Any] = [records, record, slots]
        self._task_counts: list[npt.NDArray[np.int32]] = []
        self._events: list[npt.NDArray[np.int32]] = []
        self._traces: list[npt.NDArray[np.int64]] = []
        for k, segment in enumerate(self._segments):
            counters = {word: allocate(shape, "int32") for word, shape
                        in new_counters(segment.encoded, workers).items()}
            self._task_counts.append(counters[layout.TASK_COUNTS])
            self._events.append(counters[layout.EVENTS])
            arrays = segment.encoded.arrays() | counters | {
                layout.ARGUMENT_TABLE: segment.arguments}
            self._keep_alive.append(arrays)
            fill_segment(records[k], segment, {w: address_of(a) for w, a in arrays.items()})
            if trace_steps:
                self._traces.append(allocate((trace_words(segment, trace_steps),), "int64"))
                trace_segment(records[k], segment, trace_steps, address_of(self._traces[-1]))
        record[layout.NUM_WORKERS] = workers
        record[layout.NUM_SEGMENTS] = len(self._segments)
        record[layout.SEGMENTS] = address_of(records)
        record[layout.CONTROL] = address_of(self._control)
        record[layout.STUCK] = address_of(self._stuck)
        record[layout.QUEUE] = address_of(slots)
        record[layout.QUEUE_CAPACITY] = capacity
        record[layout.TIMEOUT_NS] = int(timeout_s * 1e9)
        if finished is not None:
            record[layout.FINISHED] = address_of(finished)
            record[layout.NUM_REQUESTS] = len(finished)
        context = multiprocessing.get_context("fork")
        self._processes = [
            context.Process(target=kernel.call_worker, args=(record, worker), daemon=True)
            for worker in range(workers)]
        for process in self._processes:
            process.start()

    @property
    def is_running(self) -> bool:
        if any(process.exitcode for process in self._processes):
            self.abort()  # one worker died: the others would wait for it until the timeout
        return any(process.is_alive() for process in self._processes)

    def abort(self) -> None:
        """Ask every worker to leave; returns when they have."""
        if self._control[layout.ABORT] == 0:
            self._control[layout.ABORT] = layout.ABORT_REQUESTED
        deadline = time.monotonic() + LEAVE_S
        for process in self._processes:
            process.join(max(deadline - time.monotonic(), 0))
            if process.is_alive():
                process.kill()
                process.join()

    def finish(self, request: int) -> None:
        """Have a request end with the step that is running."""
        if self._finished is not None:
            self._finished[request] = 1

    def trace(self) -> list[SegmentTrace]:
        """What each segment's traced steps recorded, once the launch is done."""
        return [SegmentTrace.of(segment, words)
                for segment, words in zip(self._segments, self._traces, strict=True)]

    def task_counts(self) -> list[dict[str, tuple[int, int]]]:
        """Per segment: call → (queued tasks that ran, rows whose tile no event released)."""
        return named_task_counts(self._segments, self._task_counts)

    def check(self) -> None:
        """Raise DeadlockError if the workers gave up waiting."""
        failed = [k for k, process in enumerate(self._processes) if process.exitcode]
        if failed:
            raise EventTensorError(f"interpreted workers {failed} failed; their tracebacks are on "
                                   f"standard error")
        if self._control[layout.ABORT] == layout.ABORT_TIMEOUT:
            raise describe_launch(self._stuck, self._segments, self._task_counts, self._events)
