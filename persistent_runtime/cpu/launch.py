"""One launch on the CPU: threads that each run the worker, a way to watch and to end it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from persistent_runtime.cpu.compile.parallel import compile_entries
from persistent_runtime.cpu.compile.registry import entry_of, worker_entry
from persistent_runtime.cpu.cores import available_cores
from persistent_runtime.cpu.worker import worker as worker_module
from persistent_runtime.function_table import FunctionTable
from persistent_runtime.launch.launch import Kernel, Launch, Progress
from persistent_runtime.launch.memory import PAGE, HostMemory
from persistent_runtime.rows import layout
from persistent_runtime.rows.segment import Segment

# Polls before a waiting worker sleeps: longer than other workers usually keep it waiting, for to
# wake it costs several times as much, and shorter than a time slice by far
SPIN_LIMIT = 1_000
SPIN_LIMIT_OVERSUBSCRIBED = 50
FILES = ("worker.py", "queue.py", "slots.py", "actions.py", "waiting.py", "sleeping.py")
SLEEP_NS = 20_000_000  # nothing wakes a worker whose launch is given up; it looks this often


def scratch_bytes(segment: Segment) -> int:
    """What a device function of the segment may need beside its operands, per worker."""
    return max(int(call.function.scratch_bytes.substitute(call.sizes).evaluate(segment.bindings))
               for call in segment.encoded.schedule.table.graph.calls)


class CpuLaunch(Launch):
    """Threads of this process, one per worker."""

    def __init__(self, kernel: CpuKernel, segments: Sequence[Segment],
                 finished: npt.NDArray[np.int32] | None, timeout_s: float, trace_steps: int
                 ) -> None:
        super().__init__(kernel, segments, finished, timeout_s, trace_steps)
        memory, workers = kernel.memory, kernel.num_workers
        stride = (max(map(scratch_bytes, segments), default=0) // PAGE + 1) * PAGE
        scratch = memory.zeros((workers * stride // 4,), np.float32)
        steps = memory.zeros((workers, layout.STEP_WORDS), np.int64)
        berths = memory.zeros((workers, layout.BERTH_WORDS), np.int64)
        self._keep_alive += [scratch, steps, berths]
        record = self._record
        record[layout.FUNCTIONS] = memory.address(kernel.function_table)
        record[layout.SCRATCH] = memory.address(scratch)
        record[layout.SCRATCH_BYTES] = stride
        record[layout.STEP_RECORDS] = memory.address(steps)
        record[layout.BERTHS] = memory.address(berths)
        record[layout.SLEEP_NS] = SLEEP_NS
        record[layout.SPIN_LIMIT] = kernel.spin_limit
        self._threads: list[threading.Thread] = []  # that have started
        with self._starting("threads", self._threads, workers):
            for worker in range(workers):
                thread = threading.Thread(target=self._work, args=(kernel, worker),
                                          name=f"worker-{worker}", daemon=True)
                thread.start()
                self._threads.append(thread)

    def _work(self, kernel: CpuKernel, worker: int) -> None:
        """A thread's body. That it is a method keeps the launch's memory alive while it runs."""
        kernel.call_worker(kernel.memory.address(self._record), worker)

    @property
    def has_ended(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()


class CpuKernel(Kernel):
    """Bodies and worker in numba."""

    launch_type = CpuLaunch
    memory: HostMemory

    def __init__(self, kinds: FunctionTable, num_workers: int,
                 progress: Progress | None = None) -> None:
        self.num_workers = num_workers
        cores = available_cores()
        self.spin_limit = SPIN_LIMIT if num_workers <= cores else SPIN_LIMIT_OVERSUBSCRIBED
        self.memory = HostMemory()
        self.kinds = kinds
        worker = worker_entry(worker_module.run_worker, worker_module.WORKER_SIGNATURE)
        # what takes longest first: the worker, and of a decoder's functions the last
        self._worker, *bodies = compile_entries(
            [worker, *map(entry_of, reversed(kinds.variants))],
            cores, progress)
        self._bodies = bodies[::-1]
        self.function_table = np.array([body.address for body in self._bodies], np.int64)
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(self._worker.address)

    def sources(self) -> dict[str, str]:
        folder = Path(worker_module.__file__).parent
        return {name: (folder / name).read_text(encoding="utf-8")
                for name in FILES}

    def call_worker(self, record: int, worker: int) -> None:
        """Runs one worker to its end on this thread, without the interpreter lock."""
        self._call(record, worker)
