"""What program order demands, worked out anew from regions and never from events or clocks.

An abstract memory has one cell per element, which holds the task that wrote it last. A matrix says
which tasks conflict, and a boolean closure which are ordered. Both are slow and obvious, and share
no code with the proofs they judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from event_tensor.device_function import Indexed, Rows, Span, Tile
from event_tensor.simulate import simulate
from event_tensor.task_table import TaskTable

UNWRITTEN, RUNNING = -1, -1000  # RUNNING - t: task t may be writing this cell at any moment


class OrderError(AssertionError):
    """A task saw memory that the program, run in order, would not have shown it."""


@dataclass(frozen=True, slots=True)
class Access:
    tensor: str
    box: tuple[slice | np.ndarray, ...]
    reads: bool
    writes: bool


def accesses(table: TaskTable) -> list[list[Access]]:
    """[tasks]: every box each task touches."""
    result: list[list[Access]] = []
    for task in range(table.num_tasks):
        call = table.graph.calls[int(table.call[task])]
        local = {**table.bindings, **table.runtime,
                 **{axis: int(table.tile[task, k]) for k, axis in enumerate(call.function.axes)}}
        boxes = []
        for operand, tensor in call.accesses():
            box = []
            for part, dim in zip(call.region(operand), tensor.shape, strict=True):
                low, high = 0, int(dim.evaluate(local))
                if isinstance(part, Tile):
                    size = part.size.evaluate(local)
                    low, high = local[part.axis] * size, min((local[part.axis] + 1) * size, high)
                elif isinstance(part, Span):
                    low = part.start.evaluate(local)
                    high = min(low + part.length.evaluate(local), high)
                elif isinstance(part, Rows):
                    named = local[call.operand_tensor(part.by).name]
                    places = np.atleast_1d(named[tuple(local[axis] for axis in part.axes)])
                    box.append(places[places >= 0])
                    continue
                elif isinstance(part, Indexed):
                    raise NotImplementedError("cells of an indexed region exist only at run time")
                box.append(slice(low, max(low, high)))
            boxes.append(Access(tensor.name, tuple(box), operand.reads, operand.writes))
        result.append(boxes)
    return result


class Program:
    """A task table's memory, what each task must see in it, and which tasks conflict."""

    def __init__(self, table: TaskTable) -> None:
        self.table = table
        self.shapes = {t.name: tuple(int(d.evaluate(table.bindings)) for d in t.shape)
                       for t in table.graph.tensors()}
        self.accesses = accesses(table)
        memory = self.fresh_memory()
        self.expected: list[list[np.ndarray]] = []  # per task, one snapshot for each read
        for task, boxes in enumerate(self.accesses):
            self.expected.append([memory[a.tensor][a.box].copy() for a in boxes if a.reads])
            for a in boxes:
                if a.writes:
                    memory[a.tensor][a.box] = task
        self.final = memory

    def fresh_memory(self) -> dict[str, np.ndarray]:
        return {name: np.full(shape, UNWRITTEN) for name, shape in self.shapes.items()}

    def conflicts(self) -> np.ndarray:
        """[tasks, tasks] bool: row before column in program order, they overlap, one writes.

        Tasks of one call have no order; where they conflict both directions are set.
        """
        tasks = self.table.num_tasks
        shared = np.zeros((tasks, tasks), bool)
        for name, shape in self.shapes.items():
            cells = int(np.prod(shape))
            touched = np.zeros((tasks, *shape), np.float32)
            written = np.zeros((tasks, *shape), np.float32)
            for task, boxes in enumerate(self.accesses):
                for a in boxes:
                    if a.tensor == name:
                        touched[(task, *a.box)] = 1
                        if a.writes:
                            written[(task, *a.box)] = 1
            common = written.reshape(tasks, cells) @ touched.reshape(tasks, cells).T > 0
            shared |= common | common.T
        np.fill_diagonal(shared, False)
        call = self.table.call
        return shared & (call[:, None] <= call[None, :])

    def unordered(self, before: np.ndarray) -> np.ndarray:
        """[k, 2]: conflicting pairs that `before` [tasks, tasks] leaves without an order."""
        return np.argwhere(self.conflicts() & ~before)

    def replay(self, seed: int, orders: Sequence[np.ndarray] | None = None, workers: int = 4,
               table: TaskTable | None = None, queued: Sequence[int] = ()) -> list[int]:
        """One seeded interleaving; `table` may be another with the same tasks. With `orders`,
        `queued` are the tasks that any worker pops.

        Raises OrderError where a task reads, at its start or at its end, what program order would
        not show it, where two tasks write a cell at once, or where the final memory differs.
        """
        memory = self.fresh_memory()

        def check_reads(task: int, when: str, skip_updates: bool) -> None:
            reads = [a for a in self.accesses[task] if a.reads]
            for a, expected in zip(reads, self.expected[task], strict=True):
                mine = any(b.writes and b.tensor == a.tensor for b in self.accesses[task])
                if not (skip_updates and mine) and not np.array_equal(
                        memory[a.tensor][a.box], expected):
                    raise OrderError(f"{self.table.task_name(task)} sees a wrong {a.tensor} {when}")

        def on_start(task: int) -> None:
            check_reads(task, "when it starts", skip_updates=False)
            for a in self.accesses[task]:
                if a.writes:
                    memory[a.tensor][a.box] = RUNNING - task

        def on_finish(task: int) -> None:
            check_reads(task, "before it ends", skip_updates=True)
            for a in self.accesses[task]:
                if a.writes:
                    if (memory[a.tensor][a.box] != RUNNING - task).any():
                        raise OrderError(f"{self.table.task_name(task)} shares its output "
                                         f"{a.tensor} with a task that runs at the same time")
                    memory[a.tensor][a.box] = task

        finished = simulate(table or self.table, orders, queued=queued, seed=seed,
                            workers=workers, on_start=on_start, on_finish=on_finish)
        for name, cells in memory.items():
            if not np.array_equal(cells, self.final[name]):
                raise OrderError(f"{name} ends with values of other tasks than in program order")
        return finished


def ordered_by_events(table: TaskTable, orders: Sequence[np.ndarray] = ()) -> np.ndarray:
    """[tasks, tasks] bool: row certainly ends before column starts, by the events and, where
    given, by the workers' orders. A task before itself means that it can never run."""
    tasks, events = table.num_tasks, table.num_events
    notifies = np.zeros((tasks, events), np.float32)
    notifies[table.notify_task, table.notify_event] = 1
    waits = np.zeros((events, tasks), np.float32)
    waits[table.wait_event, table.wait_task] = 1
    before = notifies @ waits > 0
    for order in orders:
        before[order[:-1], order[1:]] = True
    while True:
        step = before.astype(np.float32)
        longer = before | (step @ step > 0)
        if np.array_equal(longer, before):
            return before
        before = longer
