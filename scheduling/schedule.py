"""Schedules: a fixed order of tasks for every worker (paper, Algorithm 1), and tasks that are
pushed to a ready queue instead (paper, Algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from event_tensor.task_table import IntArray, TaskTable
from scheduling.names import SCHEDULES

Orders: TypeAlias = tuple[IntArray, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Where one kind of run of calls goes, and why (choose.py). Estimates are microseconds of one
    run, the mean over samples."""

    calls: tuple[str, ...]  # names of the calls that were estimated
    runs: int  # how many runs of the graph they stand for
    in_queue: bool  # through the ready queue, else in rows
    rows_us: float
    queue_us: float
    reason: str
    early_us: float | None = None  # queue_us with early pushes; None where not estimated
    early: bool = False  # weighed with early pushes


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """`orders[w]` lists worker w's tasks, `queued` those that any worker pops, in program order.

    `table` is what runs: its waits may be fewer than those of `source`, the proved table, but must
    order the same tasks. The queue has `queue_capacity` slots, a power of two. policy: a name of
    names.py. early: whether queued tasks are pushed early (early.py).
    """

    source: TaskTable
    table: TaskTable
    orders: Orders
    policy: str
    queued: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    queue_capacity: int = 0
    choices: tuple[Choice, ...] = ()  # where a policy weighed rows against the queue
    early: bool = False

    @property
    def num_workers(self) -> int:
        return len(self.orders)

    @property
    def kind(self) -> str:
        """"static", "dynamic" or "hybrid": whether none, all or some of the tasks are queued; with
        early pushes "dynamic_early" or "hybrid_early"."""
        if not len(self.queued):
            return "static"
        kind = "hybrid" if any(len(order) for order in self.orders) else "dynamic"
        return f"{kind}_early" if self.early else kind

    @property
    def name(self) -> str:
        """What reports call it: the name it was asked for by, or what that came to."""
        return self.kind if SCHEDULES[self.policy].is_kind else self.policy


def queue_capacity(queued: int) -> int:
    """Slots for all the queued tasks of a step: the next power of two, so that tickets may wrap."""
    return 1 << (queued - 1).bit_length() if queued else 0
