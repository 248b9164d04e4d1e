"""A trace in the Chrome trace-event format, which ui.perfetto.dev and chrome://tracing open."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persistent_runtime.trace.record import SegmentTrace
from persistent_runtime.trace.timeline import Slice, function_of, timeline

PROCESS = 1
Event = dict[str, Any]


def no_more(call_name: str) -> Event:
    """Nothing to say of a call beside its name."""
    return {}


def chrome_trace(traces: Sequence[SegmentTrace], metadata: dict[str, Any],
                 say_more: Callable[[str], Event] = no_more) -> dict[str, Any]:
    """The JSON object: one thread per worker and one above them for the steps.

    ts and dur are microseconds; a worker's slices never overlap. `metadata` goes into the file;
    say_more: name of a call → what its slices say beside it.
    """
    workers = max(trace.segment.encoded.schedule.num_workers for trace in traces)
    origin_us = min(float(trace.wait_us[trace.worker >= 0].min(initial=np.inf))
                    for trace in traces)
    names = ["steps", *(f"worker {worker}" for worker in range(workers))]
    events: list[Event] = [_name("process_name", 0, "event-tensor")]
    for thread, name in enumerate(names):
        events += [_name("thread_name", thread, name),
                   {**_name("thread_sort_index", thread, ""), "args": {"sort_index": thread}}]
    for number, trace in enumerate(traces):
        for step, slices in enumerate(timeline(trace)):
            place = {"segment": number, "step": step}
            if not slices:  # the launch ended before
                break
            events.append(_step(trace, slices, origin_us, place))
            events += [_slice(trace, each, origin_us, place, say_more) for each in slices]
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": metadata}


def write_trace(record: dict[str, Any], path: Path) -> None:
    """gzipped where the name ends in .gz. Raises OSError."""
    text = json.dumps(record, separators=(",", ":")).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)


def _name(kind: str, thread: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": PROCESS, "tid": thread, "args": {"name": name}}


def _complete(thread: int, name: str, category: str, begin_us: float, end_us: float,
              args: Event) -> Event:
    # both ends are rounded, to the nanosecond: a duration rounded by itself could overlap
    begin, end = round(begin_us, 3), round(end_us, 3)
    return {"ph": "X", "name": name, "cat": category, "pid": PROCESS, "tid": thread, "ts": begin,
            "dur": round(end - begin, 3), "args": args}


def _step(trace: SegmentTrace, slices: Sequence[Slice], origin_us: float, place: Event) -> Event:
    bindings = dict(trace.table.bindings)
    tokens = bindings.get("tokens", 1)
    name = f"step of {tokens} tokens" if tokens > 1 else "step"
    tasks = [each for each in slices if each.task is not None]
    return _complete(0, name, "step", min(each.begin_us for each in slices) - origin_us,
                     max(each.end_us for each in tasks) - origin_us, {**place, **bindings})


def _slice(trace: SegmentTrace, each: Slice, origin_us: float, place: Event,
           say_more: Callable[[str], Event]) -> Event:
    table = trace.table
    begin, end = each.begin_us - origin_us, each.end_us - origin_us
    if each.task is None:
        return _complete(each.worker + 1, "wait", "wait", begin, end, {"for": each.wait, **place})
    call = table.graph.calls[int(table.call[each.task])]
    tile = table.tile[each.task, :len(call.tile_num)].tolist()
    return _complete(each.worker + 1, function_of(table, each.task), "task", begin, end, {
        "call": call.name, **say_more(call.name), "tile": tile, "task": each.task,
        "bytes": int(table.bytes[each.task]), **place})
