"""Numbers and counts of a schedule's events on the device.

The table of a schedule has one event for each data-dependent event tensor; here the tensor's own
events come back, behind the table's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from event_tensor.symbols import Expr
from event_tensor.task_table import IntArray, TaskTable
from event_tensor.tensors import EventTensor


class EventIndex:
    """`begin` and `shape` of the data-dependent event tensors; `counts` [events]: notifies per
    step, 0 where a tensor on the device holds the number."""

    def __init__(self, table: TaskTable) -> None:
        self.table = table
        self.begin: dict[EventTensor, int] = {}
        self.shape: dict[EventTensor, tuple[int, ...]] = {}
        self.counts = table.event_count
        for stand_in in table.event_begin:
            event = stand_in.stands_for
            if event is not None:
                self.begin[event] = len(self.counts)
                self.shape[event] = tuple(int(d.evaluate(table.bindings)) for d in event.shape)
                count = (event.wait_count.evaluate(table.bindings)
                         if isinstance(event.wait_count, Expr) else 0)
                size = int(np.prod(self.shape[event], dtype=np.int64))
                self.counts = np.concatenate([self.counts, np.full(size, count)])
        self._first_twin = len(self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    def range_of(self, event: EventTensor) -> slice:
        """The events of a data-dependent event tensor."""
        begin = self.begin[event]
        return slice(begin, begin + int(np.prod(self.shape[event], dtype=np.int64)))

    @property
    def is_counted_on_device(self) -> npt.NDArray[np.bool_]:
        """[events]: whether the count is in a tensor."""
        result = np.zeros(len(self), bool)
        for event in self.begin:
            result[self.range_of(event)] = not isinstance(event.wait_count, Expr)
        return result

    def add_twins(self, events: IntArray) -> IntArray:
        """New events with the counts of these; returns their numbers."""
        first = len(self)
        self.counts = np.concatenate([self.counts, self.counts[events]])
        return np.arange(first, len(self))

    def name(self, event: int) -> str:
        """`E_expert[3]`"""
        if event < self.table.num_events:
            return self.table.event_name(event)
        if event >= self._first_twin:
            return f"dispatches[{event - self._first_twin}]"
        tensor = max((t for t, b in self.begin.items() if b <= event), key=lambda t: self.begin[t])
        index = np.unravel_index(event - self.begin[tensor], self.shape[tensor] or (1,))
        return f"{tensor.name}[{', '.join(str(int(i)) for i in index[:len(tensor.shape)])}]"
