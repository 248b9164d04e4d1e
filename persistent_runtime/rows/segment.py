"""What a launch of any backend is made of: segments and their records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persistent_runtime.rows import layout
from persistent_runtime.rows.encode import EncodedSchedule, Int64Array


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
