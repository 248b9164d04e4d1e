"""The GPU worker without a GPU: the same source under Triton's interpreter, a process per worker.

The interpreter runs the programs of a grid one after another, so a wait for a later one would
never end. Here every worker is a forked process that runs one program, over memory they share;
atomics are those of the host. TRITON_INTERPRET=1 must be set before triton is imported.

Everything workers write must be shared memory: `persistent_runtime.launch.memory.allocate` is.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
from triton.language import standard
from triton.runtime import interpreter

from event_tensor.errors import EventTensorError, UserError
from event_tensor.graph import Call
from persistent_runtime.backend import GIVEN
from persistent_runtime.function_table import FunctionTable, Variant
from persistent_runtime.gpu import addresses
from persistent_runtime.gpu.bodies import arguments, epilogue
from persistent_runtime.gpu.compile.registry import configurations, kernel_tables
from persistent_runtime.gpu.compile.stored import loaders_of
from persistent_runtime.gpu.ring import streamed
from persistent_runtime.gpu.ring.kernel import RingKernel
from persistent_runtime.gpu.worker import actions, queue, sync, turn
from persistent_runtime.gpu.worker.worker import run_worker, worker_source
from persistent_runtime.launch.countdown import Countdown
from persistent_runtime.launch.launch import Kernel, Launch
from persistent_runtime.launch.memory import Buffers, HostMemory
from persistent_runtime.rows import layout
from persistent_runtime.rows.segment import Segment
from scheduling.target import H200, Target

LEAVE_S = 5.0  # what an aborted worker may take for the task it is in


class InterpretedBackend:
    """`persistent_runtime.backend.Backend`: the GPU worker, at a hundred-thousandth the speed."""

    name = "interpreter"
    ring_pieces = 0

    def target(self, workers: int | None) -> Target:
        return H200.with_workers(4 if workers is None else workers)

    def workers_from(self, workers: int | None) -> str:
        return "the interpreter's default" if workers is None else GIVEN

    def cache_directory(self) -> str:
        return "nowhere: nothing is compiled"

    def buffers(self) -> Buffers:
        return Buffers()

    def compile(self, calls: Sequence[Call], kinds: FunctionTable, target: Target,
                progress: Callable[[int, int], None] | None, is_dynamic: bool
                ) -> InterpretedKernel:
        configured = configurations(calls, kinds, interpreted=True, ring_pieces=self.ring_pieces)
        return InterpretedKernel(kinds, target.workers, progress, configured=configured,
                                 is_dynamic=is_dynamic, ring_pieces=self.ring_pieces)

    def measured(self, kernel: Kernel, target: Target) -> Target:
        """A GPU's record is a constant."""
        return target


class InterpretedLaunch(Launch):
    """Forked processes, one per worker."""

    def __init__(self, kernel: InterpretedKernel, segments: Sequence[Segment],
                 finished: npt.NDArray[np.int32] | None, timeout_s: float, trace_steps: int
                 ) -> None:
        super().__init__(kernel, segments, finished, timeout_s, trace_steps)
        context = multiprocessing.get_context("fork")
        self._processes: list[Any] = []  # that have started
        with self._starting("processes", self._processes, kernel.num_workers):
            for worker in range(kernel.num_workers):
                process = context.Process(target=kernel.call_worker, args=(self._record, worker),
                                          daemon=True)
                process.start()
                self._processes.append(process)

    @property
    def has_ended(self) -> bool:
        is_over = not any(process.is_alive() for process in self._processes)
        if not is_over and any(process.exitcode for process in self._processes):
            self._memory.write(self._control, layout.ABORT, layout.ABORT_REQUESTED)
            self._join()  # the others would wait for the dead one
            return True
        return is_over

    def _join(self) -> None:
        countdown = Countdown(LEAVE_S)
        for process in self._processes:
            while process.is_alive() and not countdown.is_over:
                process.join(countdown.pause_s)
            if process.is_alive():
                process.kill()
                process.join()

    def check(self) -> None:
        """Raise DeadlockError, or EventTensorError if a worker died."""
        failed = [k for k, process in enumerate(self._processes) if process.exitcode]
        if failed:
            raise EventTensorError(f"interpreted workers {failed} failed; their tracebacks are on "
                                   f"standard error")
        super().check()


class InterpretedKernel(RingKernel):
    """The Triton worker, run by the interpreter."""

    launch_type = InterpretedLaunch

    def __init__(self, kinds: FunctionTable, num_workers: int,
                 progress: Callable[[int, int], None] | None = None, *,
                 configured: Mapping[Variant, Any], is_dynamic: bool = True,
                 ring_pieces: int = 0) -> None:
        if not triton.knobs.runtime.interpret:
            raise UserError("set TRITON_INTERPRET=1 before triton is imported to interpret kernels")
        self.num_workers, self.is_dynamic = num_workers, is_dynamic
        self.memory = HostMemory()
        self.ring_pieces, self.configured = ring_pieces, configured
        self.kinds = kinds
        self.bodies, self.configurations, self.fingerprint = kernel_tables(configured)
        loaders = [loader for of in kinds.variants for loader in loaders_of(of.formats)]
        _rewrite_functions([*self.bodies, *loaders])
        if progress:
            progress(len(kinds), len(kinds))

    def sources(self) -> dict[str, str]:
        return {"worker.py": worker_source()}

    def call_worker(self, record: npt.NDArray[np.int64], worker: int) -> None:
        """Runs one worker to its end in this process."""
        patch_language_once()
        run_worker[(1,)](torch.from_numpy(record), worker, self.bodies, self.configurations,
                         self.fingerprint, RING=self.ring_pieces, DYNAMIC=self.is_dynamic,
                         INTERPRETED=True)


def _rewrite_functions(bodies: Sequence[Any]) -> None:
    """Has the interpreter parse what the workers will call, once for all processes to come."""
    modules = {body.fn.__module__ for body in bodies} | {
        run_worker.fn.__module__, *(module.__name__ for module in (
            addresses, turn, sync, queue, actions, arguments, epilogue, streamed, standard))}
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
    original = interpreter._patch_lang
    patched: set[int] = set()

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
