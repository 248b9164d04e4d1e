"""A trace as slices: what each worker did when, tasks and waits, without overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from event_tensor.task_table import TaskTable
from persistent_runtime.trace.record import SegmentTrace

READY_QUEUE, END_OF_STEP = "ready queue", "end of step"


@dataclass(frozen=True, slots=True)
class Slice:
    """A worker's time from begin_us to end_us: a task, or a wait for what `wait` names."""

    worker: int
    begin_us: float
    end_us: float
    task: int | None
    wait: str = ""


def function_of(table: TaskTable, task: int) -> str:
    """Name of the task's device function."""
    return table.graph.calls[int(table.call[task])].function.name


def timeline(trace: SegmentTrace) -> list[list[Slice]]:
    """Per traced step the slices of all workers, each worker's in the order of time.

    A row's wait leaves out the queued tasks that its worker ran meanwhile. Between the last task
    of a step and the first of the next one a worker waits for the end of the step; after the last
    traced step nothing is known of it.
    """
    steps, workers = len(trace.worker), trace.segment.encoded.schedule.num_workers
    own = [[_slices(trace, step, worker) for worker in range(workers)] for step in range(steps)]
    for step, following in zip(own, own[1:], strict=False):
        for worker, slices in enumerate(step):
            if slices and following[worker]:
                end, begin = slices[-1].end_us, following[worker][0].begin_us
                slices.append(Slice(worker, end, max(begin, end), None, END_OF_STEP))
    return [[each for slices in step for each in slices] for step in own]


def _slices(trace: SegmentTrace, step: int, worker: int) -> list[Slice]:
    """Of one worker in one step. What a task's slice leaves free before it is a wait of the next
    row if the worker had turned to that row, else a wait for something to pop."""
    schedule = trace.segment.encoded.schedule
    tasks = np.flatnonzero(trace.worker[step] == worker)
    tasks = tasks[np.argsort(trace.run_us[step, tasks], kind="stable")]
    turned, run, end = (times[step, tasks] for times in (trace.wait_us, trace.run_us, trace.end_us))
    is_queued = np.isin(tasks, schedule.queued)
    result: list[Slice] = []
    rows = np.append(np.where(is_queued, len(tasks), np.arange(len(tasks))), len(tasks))
    next_row = np.minimum.accumulate(rows[::-1])[::-1]  # at or after each task
    for k, task in enumerate(tasks.tolist()):
        free = result[-1].end_us if result else turned[k]
        row = next_row[k]
        if row < len(tasks) and turned[row] <= run[k]:
            begin, wait = max(free, turned[row]), schedule.table.task_name(int(tasks[row]))
        else:
            begin, wait = free, READY_QUEUE
        if begin < run[k]:
            result.append(Slice(worker, float(begin), float(run[k]), None, wait))
        result.append(Slice(worker, float(run[k]), float(end[k]), task))
    return result
