"""What every backend shares: a kernel that launches, and a launch to watch and to end.

A backend brings its memory and its workers: threads, processes or CTAs. Records, counters, traces
and error messages are the same everywhere and are made here.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from event_tensor.errors import UserError
from event_tensor.graph import Graph
from event_tensor.refusals import LIMITS, reserving
from persistent_runtime.function_table import FunctionTable
from persistent_runtime.launch.diagnose import describe_launch
from persistent_runtime.rows import layout
from persistent_runtime.rows.encode import ArgumentEncoder, EncodedSchedule
from persistent_runtime.rows.segment import (
    Segment,
    fill_segment,
    new_counters,
    outstanding,
    queue_capacity,
)
from persistent_runtime.trace.record import SegmentTrace, trace_segment, trace_words

Progress = Callable[[int, int], None]  # functions compiled so far, and of how many


class Memory(Protocol):
    """What workers read and write: `buffers.HostMemory` or `gpu.memory.DeviceMemory`."""

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """Zeroed memory that workers may write."""
        ...

    def upload(self, array: npt.NDArray[Any]) -> Any:
        """A host array where workers can read it."""
        ...

    def download(self, memory: Any) -> npt.NDArray[Any]:
        """What workers have written, on the host."""
        ...

    def address(self, memory: Any) -> int:
        """Address of such memory in the workers' address space."""
        ...

    def write(self, memory: Any, index: int, value: int) -> None:
        """Sets an element while workers may be running."""
        ...

    def device_side(self, array: npt.NDArray[Any]) -> Any:
        """What workers see of a control tensor whose host side this is."""
        ...

    def push_control(self) -> None:
        """What the host has written to control tensors goes to the workers; before a launch."""
        ...

    def pull_control(self) -> None:
        """What the workers have written to control tensors so far comes to the host."""
        ...


class Kernel(ABC):
    """Compiled device functions and a worker that calls them: one for every schedule and shape.

    kinds: the function table, which says what runs each call.
    """

    num_workers: int
    kinds: FunctionTable
    memory: Memory
    launch_type: ClassVar[Callable[..., Launch]]

    def launch(self, segments: Sequence[Segment], *,
               finished: npt.NDArray[np.int32] | None = None, timeout_s: float = 30.0,
               trace_steps: int = 0) -> Launch:
        """Start the workers and return at once.

        `finished` [requests]: a control tensor; the launch ends after the step in which all its
        entries are set. `timeout_s`: how long a worker may wait for one event before the launch
        is given up. `trace_steps`: of each segment, how many steps leave trace records.
        """
        with reserving(f"a launch of {self.num_workers} workers, its counters"
                       + (f" and traces of {trace_steps} steps" if trace_steps else ""),
                       "use fewer --workers, trace fewer steps, or " + LIMITS):
            return self.launch_type(self, segments, finished, timeout_s, trace_steps)

    def arrays_of(self, encoded: EncodedSchedule) -> Mapping[int, Any]:
        """Word of the segment record → the schedule's array, where workers can read it."""
        return encoded.arrays()

    def streamed_calls(self, graph: Graph, bindings: Mapping[str, int]) -> tuple[int, ...]:
        """Indices of the calls whose weights reach a worker by another way than its loads, in steps
        of these sizes; none where a backend has no such way."""
        return ()

    def with_streams(self, encoded: EncodedSchedule, arguments: ArgumentEncoder,
                     calls: Sequence[int]) -> EncodedSchedule:
        """The schedule with all that workers need for that way."""
        return encoded

    @abstractmethod
    def sources(self) -> dict[str, str]:
        """File name → text of what runs."""


class Launch(ABC):
    """A running launch. `wait` returns when it is done and raises what went wrong.

    A backend's subclass starts the workers on `_record` when this has filled it.
    """

    def __init__(self, kernel: Kernel, segments: Sequence[Segment],
                 finished: npt.NDArray[np.int32] | None, timeout_s: float, trace_steps: int
                 ) -> None:
        memory, workers = kernel.memory, kernel.num_workers
        self._memory, self._segments = memory, list(segments)
        memory.push_control()
        self._finished = None if finished is None else memory.device_side(finished)
        control = np.zeros(layout.CONTROL_WORDS + workers * layout.EVENT_STRIDE, np.int32)
        control[layout.OUTSTANDING] = outstanding(self._segments, workers)
        self._control = memory.upload(control)
        self._stuck = memory.zeros((workers, layout.STUCK_WORDS), np.int64)
        self._counters: list[dict[int, Any]] = []
        self._traces: list[Any] = []
        self._keep_alive: list[Any] = [kernel]
        records = np.zeros((max(len(segments), 1), layout.SEGMENT_WORDS), np.int64)
        for record, segment in zip(records, self._segments, strict=False):
            self._fill_segment(record, kernel, segment, trace_steps)
        self._record = np.zeros(layout.LAUNCH_WORDS, np.int64)
        self._fill_launch(memory.upload(records), workers, timeout_s)
        if finished is not None:
            self._record[layout.FINISHED] = memory.address(self._finished)
            self._record[layout.NUM_REQUESTS] = len(finished)

    def _fill_segment(self, record: npt.NDArray[np.int64], kernel: Kernel, segment: Segment,
                      trace_steps: int) -> None:
        memory = self._memory
        counters = {word: memory.zeros(shape, np.int32) for word, shape
                    in new_counters(segment.encoded, kernel.num_workers).items()}
        arrays = {**kernel.arrays_of(segment.encoded), **counters,
                  layout.ARGUMENT_TABLE: memory.upload(segment.arguments)}
        self._counters.append(counters)
        self._keep_alive.append(arrays)
        fill_segment(record, segment, {w: memory.address(a) for w, a in arrays.items()})
        if trace_steps:
            self._traces.append(memory.zeros((trace_words(segment, trace_steps),), np.int64))
            trace_segment(record, segment, trace_steps, memory.address(self._traces[-1]))

    def _fill_launch(self, segment_records: Any, workers: int, timeout_s: float) -> None:
        capacity = queue_capacity(self._segments)
        queue = self._memory.zeros((capacity,), np.int64)
        self._keep_alive += [segment_records, queue]
        address, record = self._memory.address, self._record
        record[layout.NUM_WORKERS] = workers
        record[layout.NUM_SEGMENTS] = len(self._segments)
        record[layout.SEGMENTS] = address(segment_records)
        record[layout.CONTROL] = address(self._control)
        record[layout.STUCK] = address(self._stuck)
        record[layout.QUEUE] = address(queue)
        record[layout.QUEUE_CAPACITY] = capacity
        record[layout.TIMEOUT_NS] = int(timeout_s * 1e9)

    @property
    @abstractmethod
    def has_ended(self) -> bool:
        """Whether every worker has left."""

    @abstractmethod
    def _join(self) -> None:
        """Returns when the workers, who have been asked to leave, are gone or past help."""

    @contextmanager
    def _starting(self, kind: str, started: Sequence[Any], wanted: int) -> Iterator[None]:
        """Raises UserError where the system refuses a worker; those that have started leave."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            self.abort()
            raise UserError(
                f"the system started {len(started)} of {wanted} worker {kind} and refuses another "
                f"({error}); use fewer --workers, or raise the limits on processes and memory "
                f"(ulimit -u, ulimit -v, a container's limits)") from error

    @property
    def is_running(self) -> bool:
        """Whether any worker is still at it; what they have written to control tensors so far is
        on the host when this returns."""
        ended = self.has_ended  # asked before the copy, so the last tokens are in it
        self._memory.pull_control()
        return not ended

    def finish(self, request: int) -> None:
        """Have a request of the `finished` tensor end with the step that is running."""
        if self._finished is not None and not self.has_ended:
            self._memory.write(self._finished, request, 1)

    def abort(self) -> None:
        """Ask every worker to leave; returns when they have, within one task's time."""
        if not self.has_ended:
            self._memory.write(self._control, layout.ABORT, layout.ABORT_REQUESTED)
        self._join()
        self._memory.pull_control()

    def wait(self, poll_s: float | None = 0.002) -> None:
        """Block until the launch is done; Ctrl-C ends it. Raises DeadlockError.

        poll_s: between two looks at it; None for a short launch that nothing may disturb.
        """
        try:
            if poll_s is None:
                self._join()
            while not self.has_ended:
                time.sleep(poll_s or 0.0)
        except BaseException:
            self.abort()
            raise
        self._memory.pull_control()
        self.check()

    def check(self) -> None:
        """Raise DeadlockError if the workers gave up waiting."""
        if not self.has_ended:
            return
        if self._memory.download(self._control)[layout.ABORT] == layout.ABORT_TIMEOUT:
            raise describe_launch(self._memory.download(self._stuck), self._segments,
                                  self._downloaded(layout.TASK_COUNTS),
                                  self._downloaded(layout.EVENTS))

    def trace(self) -> list[SegmentTrace]:
        """What each segment's traced steps recorded, once the launch is done."""
        return [SegmentTrace.of(segment, self._memory.download(words))
                for segment, words in zip(self._segments, self._traces, strict=True)]

    def _downloaded(self, word: int) -> list[npt.NDArray[np.int32]]:
        return [self._memory.download(of_segment[word]) for of_segment in self._counters]
