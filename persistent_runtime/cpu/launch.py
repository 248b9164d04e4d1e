"""One launch on the CPU: threads that each run the worker, a way to watch and to end it."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from event_tensor.device_function import DeviceFunction
from persistent_runtime import layout
from persistent_runtime.buffers import allocate
from persistent_runtime.cpu import worker as worker_module
from persistent_runtime.cpu.registry import CompiledBody, compile_body, compile_entry
from persistent_runtime.encode import Int64Array, address_of
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

SPIN_LIMIT = 20_000  # about half a millisecond of polling before a waiting worker yields its core
SPIN_LIMIT_OVERSUBSCRIBED = 50


class CpuKernel:
    """Compiled device functions and worker. One kernel serves every schedule and shape."""

    streams_weights = False

    def __init__(self, functions: Sequence[DeviceFunction], dtype: str, num_workers: int,
                 progress: Callable[[int, int], None] | None = None) -> None:
        self.num_workers = num_workers
        self.kinds = {function.name: k for k, function in enumerate(functions)}
        bodies: list[CompiledBody] = []
        for function in functions:
            bodies.append(compile_body(function, dtype))
            if progress:
                progress(len(bodies), len(functions))
        self._bodies = bodies
        self._function_table = np.array([body.address for body in bodies], np.int64)
        self._worker = compile_entry(worker_module.run_worker, worker_module.WORKER_SIGNATURE)
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(self._worker.address)

    def launch(self, segments: Sequence[Segment], scratch_bytes: int, *,
               finished: npt.NDArray[np.int32] | None = None, timeout_s: float = 30.0,
               trace_steps: int = 0) -> Launch:
        """Start the workers and return at once.

        `finished` [requests]: the launch ends after the step in which all its entries are set.
        `timeout_s`: how long a worker may wait for one event before the launch is given up.
        `trace_steps`: of each segment, how many steps leave trace records (`Launch.trace`).
        """
        return Launch(self, segments, scratch_bytes, finished, timeout_s, trace_steps)

    def sources(self) -> dict[str, str]:
        """File name → text of what runs."""
        folder = Path(worker_module.__file__).parent
        return {name: (folder / name).read_text(encoding="utf-8")
                for name in ("worker.py", "queue.py", "actions.py", "waiting.py")}

    @property
    def function_table(self) -> Int64Array:
        return self._function_table

    def call_worker(self, record: int, worker: int) -> None:
        """Runs one worker to its end on this thread, without the interpreter lock."""
        self._call(record, worker)


class Launch(WatchedLaunch):
    """A running launch. `wait` returns when it is done and raises what went wrong."""

    def __init__(self, kernel: CpuKernel, segments: Sequence[Segment], scratch_bytes: int,
                 finished: npt.NDArray[np.int32] | None, timeout_s: float, trace_steps: int
                 ) -> None:
        workers = kernel.num_workers
        self._segments = list(segments)
        self._control = allocate((layout.CONTROL_WORDS,), "int32")
        self._stuck = np.zeros((workers, layout.STUCK_WORDS), np.int64)
        stride = (scratch_bytes // 4096 + 1) * 4096
        self._finished = finished
        self._keep_alive: list[Any] = [kernel]
        self._task_counts: list[npt.NDArray[np.int32]] = []
        self._events: list[npt.NDArray[np.int32]] = []
        self._traces: list[Int64Array] = []
        records = np.zeros((len(self._segments), layout.SEGMENT_WORDS), np.int64)
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
                self._traces.append(np.zeros(trace_words(segment, trace_steps), np.int64))
                trace_segment(records[k], segment, trace_steps, address_of(self._traces[-1]))
        self._record = np.zeros(layout.LAUNCH_WORDS, np.int64)
        self._fill_record(kernel, records, stride, finished, timeout_s)
        self._threads = [
            threading.Thread(target=self._work, args=(kernel, worker), name=f"worker-{worker}",
                             daemon=True)
            for worker in range(workers)]
        for thread in self._threads:
            thread.start()

    def _fill_record(self, kernel: CpuKernel, records: Int64Array, scratch_stride: int,
                     finished: npt.NDArray[np.int32] | None, timeout_s: float) -> None:
        workers = kernel.num_workers
        scratch = allocate((workers * scratch_stride // 4,), "float32")
        steps = np.zeros((workers, layout.STEP_WORDS), np.int64)
        capacity = queue_capacity(self._segments)
        queue = np.zeros(capacity, np.int64)
        self._keep_alive += [records, scratch, steps, queue]
        self._control[layout.OUTSTANDING] = outstanding(self._segments, workers)
        record = self._record
        record[layout.NUM_WORKERS] = workers
        record[layout.NUM_SEGMENTS] = len(records)
        record[layout.SEGMENTS] = address_of(records)
        record[layout.FUNCTIONS] = address_of(kernel.function_table)
        record[layout.CONTROL] = address_of(self._control)
        record[layout.STUCK] = address_of(self._stuck)
        record[layout.SCRATCH] = address_of(scratch)
        record[layout.SCRATCH_BYTES] = scratch_stride
        record[layout.STEP_RECORDS] = address_of(steps)
        record[layout.QUEUE] = address_of(queue)
        record[layout.QUEUE_CAPACITY] = capacity
        if finished is not None:
            record[layout.FINISHED] = address_of(finished)
            record[layout.NUM_REQUESTS] = len(finished)
        record[layout.TIMEOUT_NS] = int(timeout_s * 1e9)
        record[layout.SPIN_LIMIT] = (
            SPIN_LIMIT if workers <= available_cores() else SPIN_LIMIT_OVERSUBSCRIBED)

    def _work(self, kernel: CpuKernel, worker: int) -> None:
        """A thread's body. That it is a method keeps the launch's memory alive while it runs."""
        kernel.call_worker(address_of(self._record), worker)

    @property
    def is_running(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def abort(self) -> None:
        """Ask every worker to leave; returns when they have, within one task's time."""
        if self.is_running:
            self._control[layout.ABORT] = layout.ABORT_REQUESTED
        for thread in self._threads:
            thread.join()

    def finish(self, request: int) -> None:
        """Have a request end with the step that is running."""
        if self._finished is not None:
            self._finished[request] = 1

    def task_counts(self) -> list[dict[str, tuple[int, int]]]:
        """Per segment: call → (queued tasks that ran, rows whose tile no event released)."""
        return named_task_counts(self._segments, self._task_counts)

    def trace(self) -> list[SegmentTrace]:
        """What each segment's traced steps recorded, once the launch is done."""
        return [SegmentTrace.of(segment, words)
                for segment, words in zip(self._segments, self._traces, strict=True)]

    def check(self) -> None:
        """Raise DeadlockError if the workers gave up waiting."""
        if self._control[layout.ABORT] == layout.ABORT_TIMEOUT:
            raise describe_launch(self._stuck, self._segments, self._task_counts, self._events)


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
