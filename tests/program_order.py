"""What program order demands, worked out anew from regions and never from events or clocks.

An abstract memory has one cell per element, which holds the task that wrote it last. A matrix says
which tasks conflict, and a boolean closure which are ordered. Both are slow and obvious, and share
no code with the proofs they judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from event_tensor.device_function import Indexed, Span, Tile
from event_tensor.simulate import simulate
from event_tensor.task_table import TaskTable

UNWRITTEN, RUNNING = -1, -1000  # RUNNING - t: task t may be writing this cell at any moment


class OrderError(AssertionError):
    """A task saw memory that the program, run in order, would not have shown it."""


@dataclass(frozen=True, slots=True)
class Access:
    tensor: str
    box: tuple[slice, ...]
    reads: bool
    writes: bool


def accesses(table: TaskTable) -> list[list[Access]]:
    """[tasks]: every box each task touches."""
    result: list[list[Access]] = []
    for task in range(table.num_tasks):
        call = table.graph.calls[int(table.call[task])]
        local = {**table.bindings, **{axis: int(table.tile[task, k])
                                      for k, axis in enumerate(call.function.axes)}}
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
        """[tasks, tasks] bool: row before column in program order, overlapping, one writes."""
        tasks = self.table.num_tasks
        result = np.zeros((tasks, tasks), bool)
        for name, shape in self.shapes.items():
            touched, written = np.zeros((2, tasks, *shape), np.float32)
            for task, boxes in enumerate(self.accesses):
                for a in boxes:
                    if a.tensor == name:
                        touched[(task, *a.box)] = 1
                        written[(task, *a.box)] |= 0 if not a.writes else 1  \
                            if False else 0
            result |= False
        return result
