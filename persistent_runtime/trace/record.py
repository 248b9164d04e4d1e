"""What a traced launch recorded, on one time axis: who ran which task, and how long it waited."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from event_tensor.instantiate import with_costs_at
from event_tensor.task_table import TaskTable
from persistent_runtime.rows import layout
from persistent_runtime.rows.encode import Int64Array
from persistent_runtime.rows.segment import Segment

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class SegmentTrace:
    """Times in microseconds of the clock that all workers share: arrays [steps, tasks].

    A task that did not run has worker -1. table: the schedule's, with the costs of this segment.
    """

    segment: Segment
    table: TaskTable
    worker: npt.NDArray[np.int64]
    wait_us: FloatArray  # when the worker turned to the task
    run_us: FloatArray  # when the task's events had fired
    end_us: FloatArray  # when it had notified

    @staticmethod
    def of(segment: Segment, words: Int64Array) -> SegmentTrace:
        """From trace records; ticks of each worker's clock are put on the shared one."""
        tasks = segment.encoded.schedule.table.num_tasks
        records = words.reshape(-1, tasks, layout.TRACE_WORDS)
        worker = records[:, :, layout.TRACE_WORKER] - 1
        times = np.zeros((3, *worker.shape))
        places = (layout.TRACE_WAIT, layout.TRACE_RUN, layout.TRACE_END)
        for w in np.unique(worker[worker >= 0]):
            own = worker == w
            ticks = records[own][:, list(places)].T
            times[:, own] = _on_shared_clock(ticks, records[own][:, layout.TRACE_END_NS])
        table = with_costs_at(segment.encoded.schedule.table, segment.bindings)
        return SegmentTrace(segment, table, worker, *times)


def _on_shared_clock(ticks: Int64Array, end_ns: Int64Array) -> FloatArray:
    """[3, records] ticks → microseconds. The shared clock ticks coarsely, so the rate is that of
    the whole trace, and the offset the median."""
    end = ticks[2] - ticks[2].min()
    ns = (end_ns - end_ns.min()).astype(np.float64)
    rate = ns.max() / end.max() if end.max() > 0 else 1.0
    offset = float(np.median(ns - end * rate))
    result: FloatArray = ((ticks - ticks[2].min()) * rate + offset + end_ns.min()) / 1e3
    return result


def trace_words(segment: Segment, steps: int) -> int:
    """Words of memory for the trace records of the first `steps` steps."""
    return (min(steps, segment.steps) * segment.encoded.schedule.table.num_tasks
            * layout.TRACE_WORDS)


def trace_segment(record: Int64Array, segment: Segment, steps: int, address: int) -> None:
    """Has the first `steps` steps of a segment leave trace records at `address`."""
    record[layout.TRACE] = address
    record[layout.TRACE_STEPS] = min(steps, segment.steps)
