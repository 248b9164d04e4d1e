"""What a backend is: a target record, memory and a kernel, whatever the machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from event_tensor.graph import Call
from persistent_runtime.function_table import FunctionTable
from persistent_runtime.launch.launch import Kernel, Progress
from scheduling.target import Target

GIVEN = "as given"  # what decides the number of workers where the caller does


class Backend(Protocol):
    name: str

    def target(self, workers: int | None) -> Target:
        """The machine with this many workers; by default as many as it can run at once."""
        ...

    def workers_from(self, workers: int | None) -> str:
        """What decides the number of workers of `target(workers)`, for reports."""
        ...

    def cache_directory(self) -> str:
        """Where compiled functions are kept for other processes, for reports."""
        ...

    def buffers(self) -> Any:
        """Memory for tensors, with the interface of `Buffers`."""
        ...

    def compile(self, calls: Sequence[Call], kinds: FunctionTable, target: Target,
                progress: Progress | None, is_dynamic: bool) -> Kernel:
        """calls: of all graphs that the kernel is to run; kinds: the function table to compile,
        which serves them; target: what the kernel's schedules are made for; is_dynamic: whether
        they may queue tasks or have edges that read a tensor."""
        ...

    def measured(self, kernel: Kernel, target: Target) -> Target:
        """`target` with what can only be known once the kernel is there."""
        ...
