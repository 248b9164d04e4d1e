"""Trace records of the CPU worker: ticks are nanoseconds of CLOCK_MONOTONIC."""

from __future__ import annotations

import numpy as np

from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.intrinsics import monotonic_ns, pointer_to
from persistent_runtime.cpu.worker.slots import INT64, INT64_BYTES
from persistent_runtime.rows import layout


@device_jit
def trace_of_step(segment, index):
    """Address of the trace records of this step; 0 where it is not traced."""
    if index >= segment[layout.TRACE_STEPS]:
        return np.int64(0)
    step_words = segment[layout.NUM_TASKS] * layout.TRACE_WORDS
    return segment[layout.TRACE] + index * step_words * INT64_BYTES


@device_jit
def trace_clock(state):
    """The time, or 0 where the step is not traced."""
    return monotonic_ns() if state.trace != 0 else np.int64(0)


@device_jit
def record_task(state, row, turned, ran):
    """Leaves the record of a task that has just notified."""
    if state.trace != 0:
        record = pointer_to(
            state.trace + np.int64(row[layout.TASK]) * layout.TRACE_WORDS * INT64_BYTES, INT64)
        end = monotonic_ns()
        record[layout.TRACE_WORKER] = state.worker + 1
        record[layout.TRACE_WAIT] = turned
        record[layout.TRACE_RUN] = ran
        record[layout.TRACE_END] = end
        record[layout.TRACE_END_NS] = end
