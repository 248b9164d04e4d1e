"""What every backend's launch is made of: segments, their records, and stuck workers in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from event_tensor.conservative import conditional_calls
from event_tensor.errors import DeadlockError
from persistent_runtime.rows import layout
from persistent_runtime.rows.encode import EncodedSchedule, Int32Array, Int64Array


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """One schedule, repeated `steps` times; the row fields are explained in layout.py.

    memory: what the addresses in `arguments` point into, kept alive with the segment. bindings:
    its sizes; the schedule may have been made for others that come to the same tiles.
    """

    encoded: EncodedSchedule
    arguments: Int64Array
    memory: Any
    bindings: Mapping[str, int]
    steps: int = 1
    first_row: int = 0
    row_stride: int = 0
    first_logit: int = 0
    logit_stride: int = 0
    row_advance: int = 0


def fill_segment(record: Int64Array, segment: Segment, addresses: Mapping[int, int]) -> None:
    """Writes a segment record; `addresses`: word of the record → address."""
    record[layout.STEPS] = segment.steps
    record[layout.FIRST_ROW] = segment.first_row
    record[layout.ROW_STRIDE] = segment.row_stride
    record[layout.FIRST_LOGIT] = segment.first_logit
    record[layout.LOGIT_STRIDE] = segment.logit_stride
    record[layout.SEGMENT_ADVANCE] = segment.row_advance
    record[layout.NUM_TASKS] = segment.encoded.schedule.table.num_tasks
    for place, value in (*segment.encoded.sizes().items(), *addresses.items()):
        record[place] = value


def new_counters(encoded: EncodedSchedule, workers: int) -> dict[int, tuple[int, ...]]:
    """Word of the segment record → shape of the zeroed int32 memory that a launch needs there."""
    calls = len(encoded.schedule.table.graph.calls)
    return {layout.EVENTS: (encoded.num_events + 1, layout.EVENT_STRIDE),
            layout.PENDING: (encoded.num_queued + 1,),
            layout.TASK_COUNTS: (workers, calls, layout.TASK_COUNT_WORDS)}


def queue_capacity(segments: Sequence[Segment]) -> int:
    """Slots that a launch of these segments needs; 0 where nothing is queued."""
    return max((s.encoded.schedule.queue_capacity for s in segments), default=0)


def outstanding(segments: Sequence[Segment], workers: int) -> int:
    """What OUTSTANDING holds before any worker starts: whoever starts first may finish tasks of the
    first step before another worker is there, and must not take the step for finished."""
    first = next((s for s in segments if s.steps > 0), None)
    return workers + (first.encoded.sizes()[layout.NUM_DUE] if first else 0)


def describe_launch(stuck: Int64Array, segments: Sequence[Segment],
                    counts: Sequence[Int32Array], events: Sequence[Int32Array]) -> DeadlockError:
    """The error of a launch whose workers gave up waiting. stuck: [workers, STUCK_WORDS];
    counts, events: per segment, in the shapes of `new_counters`."""
    k = int(stuck[:, layout.STUCK_SEGMENT].max())
    encoded = segments[k].encoded
    queue: list[str] = []
    if encoded.num_queued:
        finished = sum(segment.steps for segment in segments[:k])
        queue = describe_queue(encoded, counts[k].sum(axis=0)[:, layout.POPPED].tolist(),
                               events[k][:encoded.num_events, 0],
                               int(stuck[:, layout.STUCK_STEP].max()) - finished)
    return describe_stuck(stuck.tolist(), segments, queue)


def describe_queue(encoded: EncodedSchedule, popped: Sequence[int], counters: Int32Array,
                   steps: int) -> list[str]:
    """What queued tasks still wait for. `popped` [calls]: queued tasks that ran, in `steps` steps
    with the one that stands still; `counters` [events]: where they stand."""
    table, edges = encoded.schedule.table, encoded.edges
    parts = []
    conditional = conditional_calls(table.graph.original)
    queued = np.bincount(table.call[encoded.schedule.queued], minlength=len(popped))
    for call in table.graph.calls:
        due = int(queued[call.index])
        ran = popped[call.index] - due * (steps - 1)
        if ran < due and call.index not in conditional:
            parts.append(f"{ran} of {due} queued tasks of {call.name} ran")
            break
    count = edges.event_records[:, layout.EVENT_COUNT]
    partial = (edges.event_records[:, layout.EVENT_RESETS] != 0) & (counters > 0)
    parts += [f"queued tasks wait on {edges.events.name(event)}, count {int(counters[event])} of "
              f"{int(count[event])}" for event in np.flatnonzero(partial)[:4].tolist()]
    return parts


def describe_stuck(records: Sequence[Sequence[int]], segments: Sequence[Segment],
                   queue: Sequence[str] = ()) -> DeadlockError:
    """The error of a launch whose workers gave up waiting, from their stuck records; `queue`:
    what is known about queued tasks."""
    parts = []
    for worker, stuck in enumerate(records):
        target, task = stuck[layout.STUCK_TARGET], stuck[layout.STUCK_TASK]
        if target == 0:
            continue
        if task < 0:
            parts.append(f"worker {worker} waits for the others at the end of step "
                         f"{stuck[layout.STUCK_STEP]}")
            continue
        encoded = segments[stuck[layout.STUCK_SEGMENT]].encoded
        table = encoded.schedule.table
        parts.append(
            f"worker {worker}: {table.task_name(task)} waits on "
            f"{encoded.edges.events.name(stuck[layout.STUCK_EVENT])}, count "
            f"{stuck[layout.STUCK_SEEN]} of {target} in step {stuck[layout.STUCK_STEP]}")
    return DeadlockError("the launch made no progress and was ended: " + "; ".join(
        [*parts, *queue]))
