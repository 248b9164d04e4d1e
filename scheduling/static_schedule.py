"""Schedules: a fixed order of tasks for every worker (paper, Algorithm 1), and tasks that are
pushed to a ready queue instead (paper, Algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from event_tensor.task_table import IntArray, TaskTable

Orders: TypeAlias = tuple[IntArray, ...]


@dataclass(frozen=True, slots=True, eq=False)
class StaticSchedule:
    """`orders[w]` lists worker w's tasks, `queued` those that any worker pops, in program order.

    `table` is what runs: its waits may be fewer than those of `source`, the proved table, but must
    order the same tasks. The queue has `queue_capacity` slots, a power of two.
    """

    source: TaskTable
    table: TaskTable
    orders: Orders
    policy: str
    queued: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    queue_capacity: int = 0

    @property
    def num_workers(self) -> int:
        return len(self.orders)


def queue_capacity(queued: int) -> int:
    """Slots for all the queued tasks of a step: the next power of two, so that tickets may wrap."""
    return 1 << (queued - 1).bit_length() if queued else 0
