"""The warmup report's record: what one start of a decoder took, and what it found in the caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from event_tensor.graph import Graph
from frontend.decode.phases import Phases, Span
from persistent_runtime.cache.compilations import COMPILATIONS, Compilation
from persistent_runtime.megakernel import Megakernel
from persistent_runtime.rows.encode import EncodedSchedule
from scheduling.schedule import Schedule


def start_record(phases: Phases, kernel: Megakernel, schedule: Schedule,
                 schedules: Sequence[EncodedSchedule]) -> dict[str, Any]:
    """Phases sum to wall_s: from the start of the process to the first token or, if none has come
    yet, to now. Spans are seconds since the start of the process. schedule: of a decode step;
    schedules: of all shapes met so far."""
    until_s = phases.begin_s + phases.wall_s
    compiled = [c for c in COMPILATIONS if phases.begin_s <= c.begin_s <= until_s]
    return {
        **phases.record(split_compile(phases.spans, COMPILATIONS)),
        "cache": {"directory": kernel.backend.cache_directory(),
                  "hits": sum(c.cache_hit for c in compiled),
                  "misses": sum(not c.cache_hit for c in compiled)},
        "functions": [{"function": c.function, "dtype": c.dtype,
                       "cache": "hit" if c.cache_hit else "miss", "reason": c.reason,
                       "note": c.note, "seconds": round(c.seconds, 6),
                       "elsewhere_seconds": round(c.elsewhere_s, 6)} for c in compiled],
        "counts": count_record(kernel.graph, schedule, schedules),
        "resources": resources(kernel),
        "compilations": kernel.compilations, "backend": kernel.backend.name,
        "workers": kernel.num_workers, "workers_from": kernel.workers_from}


def split_compile(spans: Sequence[Span], compilations: Sequence[Compilation]) -> list[Span]:
    """A row for each device function; `compile` keeps what lies between them."""
    result: list[Span] = []
    for span in spans:
        inside = [c for c in compilations if span.begin_s <= c.begin_s < span.end_s]
        if span.name != "compile" or not inside:
            result.append(span)
            continue
        now, parts = span.begin_s, []
        for c in inside:
            name = f"compile: {c.function}" + (" (cache hit)" if c.cache_hit else "")
            parts += [Span("compile", now, c.begin_s),
                      Span(name, c.begin_s, c.begin_s + c.seconds)]
            now = c.begin_s + c.seconds
        parts.append(Span("compile", now, span.end_s))
        result += [part for part in parts if part.end_s > part.begin_s]
    return result


def count_record(graph: Graph, schedule: Schedule, schedules: Sequence[EncodedSchedule]
                 ) -> dict[str, Any]:
    """Sizes of the decode step's schedule, and how many shapes one compilation has served."""
    table = schedule.table
    return {"tasks": table.num_tasks, "events": table.num_events,
            "device_functions": len({call.function for call in graph.calls}),
            "calls": len(graph.calls), "waits": len(table.wait_event),
            "waits_before_pruning": len(schedule.source.wait_event),
            "rows_of_all_schedules": sum(len(e.rows) for e in schedules),
            "schedules": len(schedules)}


def resources(kernel: Megakernel) -> dict[str, Any] | None:
    """Registers, spills and shared memory of a kernel that knows its own."""
    compiled = kernel.kernel
    return dict(compiled.resources()) if hasattr(compiled, "resources") else None
