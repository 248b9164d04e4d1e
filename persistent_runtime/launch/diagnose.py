"""Why a launch made no progress, in words: what its stuck workers and its queued tasks wait for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from event_tensor.conservative import conditional_calls
from event_tensor.errors import DeadlockError
from persistent_runtime.rows import layout
from persistent_runtime.rows.encode import EncodedSchedule, Int32Array, Int64Array
from persistent_runtime.rows.segment import Segment


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
