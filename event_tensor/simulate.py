"""The executable definition of the protocol: tasks under seeded interleavings.

A task starts once every event it waits for has reached its count, and notifies when it finishes;
between the two any other task may start or finish. Given per-worker orders, a worker runs its
tasks in sequence (static scheduling) and any free worker may pop a ready queued task; without,
any ready task may start (dynamic scheduling).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np

from event_tensor.errors import DeadlockError
from event_tensor.task_table import IntArray, TaskTable

Observer = Callable[[int], None]


def simulate(table: TaskTable, orders: Sequence[IntArray] | None = None, *,
             queued: Sequence[int] = (), seed: int = 0, workers: int = 4,
             on_start: Observer | None = None, on_finish: Observer | None = None) -> list[int]:
    """Run every task once in a random order that the protocol allows; return the finish order.

    `on_start` and `on_finish` are called with the task at the moment its reads may begin and
    its writes are complete. Raises DeadlockError naming the stuck tasks.
    """
    rng = random.Random(seed)
    arrived = np.zeros(table.num_events, np.int64)
    queues = ([list(order) for order in orders] if orders is not None else None)
    waiting = set(range(table.num_tasks)) if queues is None else set(map(int, queued))
    heads = [0] * len(queues) if queues is not None else []
    running: dict[int, int] = {}  # worker → task
    free = set(range(len(queues) if queues is not None else workers))
    finished: list[int] = []

    def is_ready(task: int) -> bool:
        events = table.waits_of(task)
        return bool((arrived[events] >= table.event_count[events]).all())

    total = len(waiting) + (sum(map(len, queues)) if queues is not None else 0)
    while len(finished) < total:
        startable: list[tuple[int, int]] = []
        if queues is not None:
            startable = [(w, int(queues[w][heads[w]])) for w in sorted(free)
                         if heads[w] < len(queues[w]) and is_ready(int(queues[w][heads[w]]))]
        if free:
            popper = rng.choice(sorted(free)) if queues is not None else min(free)
            startable += [(popper, task) for task in sorted(waiting) if is_ready(task)]
        choices = len(startable) + len(running)
        if choices == 0:
            raise DeadlockError(_describe(table, queues, heads, waiting, arrived))
        pick = rng.randrange(choices)
        if pick < len(startable):
            worker, task = startable[pick]
            free.discard(worker)
            running[worker] = task
            if task in waiting:
                waiting.discard(task)
            elif queues is not None:
                heads[worker] += 1
            if on_start:
                on_start(task)
        else:
            worker = sorted(running)[pick - len(startable)]
            task = running.pop(worker)
            free.add(worker)
            if on_finish:
                on_finish(task)
            for event in table.notifies_of(task):
                arrived[event] += 1
            finished.append(task)
    return finished


def _describe(table: TaskTable, queues: list[list[int]] | None, heads: list[int],
              waiting: set[int], arrived: IntArray) -> str:
    stuck = [int(q[h]) for q, h in zip(queues or (), heads, strict=True) if h < len(q)]
    stuck += sorted(waiting)
    parts = []
    for task in stuck[:4]:
        events = table.waits_of(task)
        event = int(next(e for e in events if arrived[e] < table.event_count[e]))
        parts.append(f"{table.task_name(task)} waits on {table.event_name(event)} "
                     f"({int(arrived[event])} of {int(table.event_count[event])})")
    more = f" and {len(stuck) - 4} more" if len(stuck) > 4 else ""
    return f"deadlock: {'; '.join(parts)}{more}"
