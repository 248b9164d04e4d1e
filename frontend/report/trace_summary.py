"""Where a traced decode step went: device functions, workers, the critical path."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from event_tensor.task_table import TaskTable
from frontend.report.console import Record
from persistent_runtime.trace.record import FloatArray, SegmentTrace
from persistent_runtime.trace.timeline import function_of
from scheduling.simulator import estimate_makespan
from scheduling.target import Target


def summarise(trace: SegmentTrace, target: Target) -> Record:
    """Of the step of median duration, the first left out where there are more; microseconds."""
    table = trace.table
    schedule = replace(trace.segment.encoded.schedule, table=table)
    begin, end = step_bounds_us(trace)
    step = median_step(trace)
    step_us = float(end[step] - begin[step])
    simulated_us = estimate_makespan(schedule, target).makespan_us
    ran = trace.worker[step] >= 0
    run_us = np.where(ran, (trace.end_us - trace.run_us)[step], 0.0)  # [tasks]
    path = critical_path(trace, step)
    return {
        "steps": len(begin), "policy": schedule.policy,
        "bindings": {k: int(v) for k, v in table.bindings.items()},
        "tasks": int(ran.sum()), "step_us": round(step_us, 3),
        "simulated_us": round(simulated_us, 3),
        "measured_over_simulated": round(step_us / simulated_us, 3),
        "step_bytes": int(table.bytes[ran].sum()),
        "gb_s": round(float(table.bytes[ran].sum()) / step_us / 1e3, 3),
        "functions": function_records(table, ran, run_us, schedule.num_workers, path),
        "workers": [
            {"worker": worker, "busy_us": round(busy, 3), "wait_us": round(step_us - busy, 3),
             "wait_share": round(1 - busy / step_us, 4)}
            for worker in range(schedule.num_workers)
            for busy in [float(run_us[trace.worker[step] == worker].sum())]],
        "critical_path": path_record(table, run_us, path, step_us)}


def step_bounds_us(trace: SegmentTrace) -> tuple[FloatArray, FloatArray]:
    """[steps] each: when the first worker turned to a task, and when the last task ended."""
    ran = trace.worker >= 0
    return (np.where(ran, trace.wait_us, np.inf).min(axis=1),
            np.where(ran, trace.end_us, -np.inf).max(axis=1))


def median_step(trace: SegmentTrace) -> int:
    """The step of median duration, the first left out where there are more."""
    begin, end = step_bounds_us(trace)
    steps = np.arange(min(1, len(begin) - 1), len(begin))
    return int(steps[np.argsort((end - begin)[steps])[(len(steps) - 1) // 2]])


def function_records(table: TaskTable, ran: npt.NDArray[np.bool_], run_us: FloatArray,
                     workers: int, path: list[int]) -> list[Record]:
    """One per device function, the one that takes most first; run_us sums over workers. gb_s:
    what the machine would read if all workers ran this function at once."""
    kinds = np.array([call.function.name for call in table.graph.calls])[table.call]
    records = []
    for name in dict.fromkeys(kinds[ran].tolist()):
        own = ran & (kinds == name)
        total_us, read = float(run_us[own].sum()), float(table.bytes[own].sum())
        records.append({
            "function": name, "tasks": int(own.sum()), "run_us": round(total_us, 3),
            "share": round(total_us / float(run_us.sum()), 4),
            "median_task_us": round(float(np.median(run_us[own])), 3), "bytes": int(read),
            "gb_s": round(read * workers / max(total_us, 1e-3) / 1e3, 3),
            "on_critical_path": int(own[path].sum())})
    return sorted(records, key=lambda record: -record["run_us"])


def critical_path(trace: SegmentTrace, step: int) -> list[int]:
    """Tasks from the first to the last of a step, each held up by the one before it: the latest to
    end among those that it waited for and the one that its worker ran before."""
    table = trace.table
    indptr, producer = table.producers()
    worker, run, end = trace.worker[step], trace.run_us[step], trace.end_us[step]
    before: dict[int, int] = {}
    for w in np.unique(worker[worker >= 0]):
        own = np.flatnonzero(worker == w)
        own = own[np.argsort(run[own], kind="stable")]
        before |= dict(zip(own[1:].tolist(), own[:-1].tolist(), strict=True))
    task = int(np.argmax(np.where(worker >= 0, end, -np.inf)))
    path = [task]
    while True:
        held_by = [before[task]] if task in before else []
        for event in table.waits_of(task).tolist():
            held_by += producer[indptr[event]:indptr[event + 1]].tolist()
        # a notify is seen before its producer has read the clock, so ends may be a little late
        held_by = [t for t in held_by if worker[t] >= 0 and run[t] < run[task]]
        if not held_by:
            return path[::-1]
        task = max(held_by, key=lambda t: float(end[t]))
        path.append(task)


def path_record(table: TaskTable, run_us: FloatArray, path: list[int], step_us: float) -> Record:
    """What the critical path consists of; between_us: from one task's end to the next one's start
    and before the first."""
    functions: dict[str, float] = defaultdict(float)  # µs
    for task in path:
        functions[function_of(table, task)] += float(run_us[task])
    total_us = sum(functions.values())
    return {"tasks": len(path), "run_us": round(total_us, 3),
            "between_us": round(step_us - total_us, 3),
            "functions": {name: round(us, 3) for name, us in
                          sorted(functions.items(), key=lambda item: item[1], reverse=True)}}
