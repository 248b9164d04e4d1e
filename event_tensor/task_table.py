"""The concrete tasks of one step: what waits for, and notifies, which event how often."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from event_tensor.graph import Graph
from event_tensor.tensors import EventTensor

IntArray: TypeAlias = npt.NDArray[np.int64]
Runtime: TypeAlias = Mapping[str, npt.NDArray[Any]]
MAX_TILE_RANK = 4
MOST_MERGED_NAMES = 3


@dataclass(frozen=True, slots=True, eq=False)
class TaskTable:
    """Concrete tasks of one step, in program order. Ranges are CSR: task t waits for the events
    `wait_event[wait_indptr[t]:wait_indptr[t + 1]]`, and notifies likewise."""

    graph: Graph
    bindings: Mapping[str, int]
    call_begin: IntArray  # [calls + 1]: tasks of call k are call_begin[k]:call_begin[k + 1]
    call: IntArray  # [tasks]
    tile: IntArray  # [tasks, MAX_TILE_RANK]
    wait_indptr: IntArray
    wait_event: IntArray
    notify_indptr: IntArray
    notify_event: IntArray
    event_count: IntArray  # [events]
    event_begin: Mapping[EventTensor, int]
    event_shape: Mapping[EventTensor, tuple[int, ...]]
    bytes: npt.NDArray[np.float64]  # [tasks]
    flops: npt.NDArray[np.float64]
    runtime: Runtime = field(default_factory=dict)  # sample values of data-dependent edges
    # event → events whose notifies it counts as well (scheduling/merge.py)
    merged: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    wait_task: IntArray = field(init=False)  # [waits]: the task of each entry of wait_event
    notify_task: IntArray = field(init=False)  # [notifies]

    def __post_init__(self) -> None:
        tasks = np.arange(self.num_tasks)
        object.__setattr__(self, "wait_task", np.repeat(tasks, np.diff(self.wait_indptr)))
        object.__setattr__(self, "notify_task", np.repeat(tasks, np.diff(self.notify_indptr)))

    @property
    def num_tasks(self) -> int:
        return len(self.call)

    @property
    def num_events(self) -> int:
        return len(self.event_count)

    def consumers(self) -> tuple[IntArray, IntArray]:
        """CSR event → tasks that wait for it."""
        return _invert(self.wait_task, self.wait_event, self.num_events)

    def producers(self) -> tuple[IntArray, IntArray]:
        """CSR event → tasks that notify it."""
        return _invert(self.notify_task, self.notify_event, self.num_events)

    def with_waits(self, task: IntArray, event: IntArray) -> TaskTable:
        """The same tasks with other waits, given as parallel arrays sorted by task."""
        return replace(self, wait_indptr=indptr(task, self.num_tasks), wait_event=event)

    def with_notifies(self, task: IntArray, event: IntArray) -> TaskTable:
        """The same tasks with other notifies, sorted by task; counts follow."""
        return replace(self, notify_indptr=indptr(task, self.num_tasks), notify_event=event,
                       event_count=np.bincount(event, minlength=self.num_events))

    def waits_of(self, task: int) -> IntArray:
        """Events that one task waits for."""
        return self.wait_event[self.wait_indptr[task]:self.wait_indptr[task + 1]]

    def notifies_of(self, task: int) -> IntArray:
        """Events that one task notifies."""
        return self.notify_event[self.notify_indptr[task]:self.notify_indptr[task + 1]]

    def tasks_of(self, call: int) -> IntArray:
        """Indices of the tasks of one call."""
        return np.arange(self.call_begin[call], self.call_begin[call + 1])

    def task_name(self, task: int) -> str:
        """`down_proj[3, 0]`"""
        call = self.graph.calls[int(self.call[task])]
        coordinates = self.tile[task, :len(call.tile_num)]
        return f"{call.name}[{', '.join(map(str, coordinates))}]"

    def event_name(self, event: int) -> str:
        """`E_act[3]`, or `E_q[3] + E_k[3]` where one event counts for several."""
        others = self.merged.get(event, ())
        more = len(others) - MOST_MERGED_NAMES
        return " + ".join(map(self._own_name, (event, *others[:MOST_MERGED_NAMES]))) + (
            f" + {more} more" if more > 0 else "")

    def _own_name(self, event: int) -> str:
        tensor = self.event_tensor(event)
        shape = self.event_shape[tensor]
        indices = np.unravel_index(event - self.event_begin[tensor], shape) if shape else ()
        return f"{tensor.name}[{', '.join(str(int(i)) for i in indices)}]"

    def event_tensor(self, event: int) -> EventTensor:
        """The event tensor that an event belongs to."""
        return next(tensor for tensor, begin in self.event_begin.items()
                    if begin <= event < begin + int(np.prod(self.event_shape[tensor])))


def indptr(sorted_owner: IntArray, count: int) -> IntArray:
    indptr = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(sorted_owner, minlength=count), out=indptr[1:])
    return indptr


def _invert(task: IntArray, event: IntArray, num_events: int) -> tuple[IntArray, IntArray]:
    order = np.argsort(event, kind="stable")
    return indptr(event[order], num_events), task[order]
