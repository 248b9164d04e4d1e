"""Static schedules: a fixed order of tasks for every worker (paper, Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from event_tensor.task_table import IntArray, TaskTable

Orders: TypeAlias = tuple[IntArray, ...]


@dataclass(frozen=True, slots=True, eq=False)
class StaticSchedule:
    """`orders[w]` lists worker w's tasks. `table` is what runs: its waits may be fewer than those
    of `source`, the proved table, but must order the same tasks."""

    source: TaskTable
    table: TaskTable
    orders: Orders
    policy: str

    @property
    def num_workers(self) -> int:
        return len(self.orders)
