"""What `event-tensor inspect` shows of a compiled decode step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import numpy as np

from event_tensor.conservative import data_dependent_events
from event_tensor.printer import format_graph
from frontend.decode.decoder import Decoder
from frontend.report.console import Record, print_table
from frontend.report.layers import any_layer
from persistent_runtime.cache.compilations import COMPILATIONS
from scheduling.names import SCHEDULES
from scheduling.schedule import Choice
from scheduling.simulator import estimate_makespan


def graph_record(decoder: Decoder) -> Record:
    """Operators and event tensors, with their sizes in a decode step at a short context.

    counts: fewest and most notifies that an event of the tensor waits for.
    """
    table = decoder.schedule.source
    graph = table.graph
    tasks = np.diff(table.call_begin).tolist()
    events = []
    for event, first in table.event_begin.items():
        shape = table.event_shape[event]
        counts = table.event_count[first:first + int(np.prod(shape, dtype=np.int64))]
        events.append({"name": event.name, "shape": [repr(d) for d in event.shape],
                       "sizes": list(shape), "events": len(counts),
                       "counts": [int(counts.min()), int(counts.max())] if len(counts) else None})
    return {
        "text": format_graph(decoder.graph), "bindings": dict(table.bindings),
        "operators": [{"name": call.name, "function": call.function.name, "tasks": n,
                       "waits_on": [edge.event.name for edge in call.in_edges],
                       "notifies": [edge.event.name for edge in call.out_edges]}
                      for call, n in zip(graph.calls, tasks, strict=True)],
        "event_tensors": events}


def show_graph(record: Record) -> None:
    """The text form, then what recurs from layer to layer in one line each."""
    print(record["text"])
    bindings = ", ".join(f"{name}={value}" for name, value in record["bindings"].items())
    operators: dict[tuple[str, str], list[int]] = {}
    for operator in record["operators"]:
        key = any_layer(operator["name"]), operator["function"]
        operators.setdefault(key, []).append(operator["tasks"])
    print_table(f"operators ({bindings})", ["operator", "device function", "calls", "tasks"],
                [[name, function, len(tasks), sum(tasks)]
                 for (name, function), tasks in operators.items()])
    tensors: dict[str, list[Record]] = {}
    for event in record["event_tensors"]:
        tensors.setdefault(any_layer(event["name"]), []).append(event)
    print_table("event tensors", ["event tensor", "tensors", "shape", "sizes", "count"],
                [[name, len(like), f"[{', '.join(like[0]['shape'])}]", like[0]["sizes"],
                  "-".join(map(str, sorted({n for e in like for n in e["counts"] or ()})))]
                 for name, like in tensors.items()])


def schedule_record(decoder: Decoder) -> Record:
    """The schedule of a decode step of one request at a short context."""
    schedule, target = decoder.schedule, decoder.kernel.target
    table = schedule.table
    estimate = estimate_makespan(schedule, target)
    worker = np.array(estimate.task_worker, np.int64)
    waits = np.diff(table.wait_indptr)
    events = len(data_dependent_events(decoder.graph))
    return {
        "policy": schedule.policy,
        "reason": SCHEDULES[schedule.policy].reason.format(events=events),
        "choices": [choice_record(choice) for choice in schedule.choices],
        "makespan_us": round(estimate.makespan_us, 1),
        "utilisation": round(estimate.utilisation, 4),
        "waits_per_task": {str(n): int(count) for n, count in enumerate(np.bincount(waits))
                           if count},
        "queued": queued_record(decoder), "tasks": table.num_tasks, "events": table.num_events,
        "waits_before_pruning": len(schedule.source.wait_event), "waits": len(table.wait_event),
        "bindings": dict(table.bindings),
        "workers": [{"worker": w, "rows": len(schedule.orders[w]),
                     "tasks": int((worker == w).sum()), "busy_us": round(busy_us, 1),
                     "wait_us": round(wait_us, 1),
                     "occupancy": round(busy_us / estimate.makespan_us, 4),
                     "waits": int(waits[worker == w].sum())}
                    for w, (busy_us, wait_us) in enumerate(
                        zip(estimate.busy_us, estimate.wait_us, strict=True))]}


def choice_record(choice: Choice) -> Record:
    """What `auto` decided for one kind of part of the graph."""
    return {"first_call": choice.calls[0], "last_call": choice.calls[-1], "parts": choice.runs,
            "placement": "queue" if choice.in_queue else "rows",
            "rows_us": round(choice.rows_us, 1), "queue_us": round(choice.queue_us, 1),
            "early": choice.early,
            "reason": choice.reason}


def queued_record(decoder: Decoder) -> list[Record]:
    """Device functions with queued tasks: how many of a step's."""
    schedule = decoder.schedule
    names = np.array([call.function.name for call in schedule.table.graph.calls])
    of_task = names[schedule.table.call]
    found, counts = np.unique(of_task[schedule.queued], return_counts=True)
    return [{"function": name, "queued": n, "tasks": int((of_task == name).sum())}
            for name, n in zip(found.tolist(), counts.tolist(), strict=True)]


def show_schedule(record: Record) -> None:
    bindings = ", ".join(f"{name}={value}" for name, value in record["bindings"].items())
    print_table(
        f"{record['policy']}: {record['tasks']} tasks, {record['events']} events, "
        f"{record['waits']} of {record['waits_before_pruning']} waits left ({bindings})",
        ["worker", "tasks", "busy µs", "waiting µs", "occupancy", "waits"],
        [[w["worker"], w["tasks"], w["busy_us"], w["wait_us"], f"{w['occupancy']:.1%}", w["waits"]]
         for w in record["workers"]])
    print(f"estimated: {record['makespan_us']:.1f} µs, {record['utilisation']:.0%} of all workers' "
          f"time busy")
    print("tasks by number of waits: " + ", ".join(
        f"{tasks} with {n}" for n, tasks in record["waits_per_task"].items()))
    for entry in record["queued"]:
        print(f"queued: {entry['queued']} of {entry['tasks']} tasks of {entry['function']}")
    print(f"{record['policy']}: {record['reason']}")
    for choice in record["choices"]:
        print(f"{choice['parts']} x {choice['first_call']} to {choice['last_call']}: in "
              f"{choice['placement']} (estimated {choice['rows_us']:.1f} µs in rows, "
              f"{choice['queue_us']:.1f} µs through the queue): {choice['reason']}")


def kernel_record(decoder: Decoder) -> Record:
    """Device functions with their compilation in this process, tile sizes, memory in bytes."""
    return {
        "dtype": decoder.dtype, "kv_dtype": decoder.kv_dtype, "workers": decoder.num_workers,
        "compilations": decoder.compilations,
        "cache_directory": decoder.kernel.backend.cache_directory(),
        "cache_hits": sum(c.cache_hit for c in COMPILATIONS),
        "functions": [{"name": c.function, "dtype": c.dtype, "cache_hit": c.cache_hit,
                       "compile_ms": round(c.seconds * 1e3, 1), "note": c.note}
                      for c in COMPILATIONS],
        "experts": experts_record(decoder), "tiles": asdict(decoder.tiles),
        "weight_bytes_of_a_step": decoder.weight_bytes, "memory_bytes": decoder.memory_bytes()}


def experts_record(decoder: Decoder) -> Record | None:
    """How many experts there are and how many a token takes; None for a dense model."""
    experts = decoder.config.experts
    if experts is None:
        return None
    return {"experts": experts.num_experts, "experts_per_token": experts.top_k,
            "sparse_layers": sum(layer.experts is not None for layer in decoder.config.layers),
            "layers": decoder.config.num_layers,
            "intermediate_size": experts.intermediate_size}


def show_kernel(record: Record) -> None:
    print_table(
        f"kernel in {record['dtype']} for {record['workers']} workers, cached in "
        f"{record['cache_directory']}",
        ["device function", "dtype", "from cache", "ms"],
        [[f["name"], f["dtype"], f["note"] or ("yes" if f["cache_hit"] else "no"),
          f["compile_ms"]] for f in record["functions"]])
    tiles = {name: size for name, size in record["tiles"].items() if name != "experts"}
    if record["experts"]:
        tiles |= {f"experts: {name}": size for name, size in record["tiles"]["experts"].items()}
        print_table("experts", ["of a decode step", ""],
                    [[name.replace("_", " "), n] for name, n in record["experts"].items()])
    print_table("tiles", ["tile of", "rows or columns"], list(tiles.items()))
    print_table("memory", ["role", "MB"],
                [[role, f"{size / 1e6:.1f}"] for role, size in record["memory_bytes"].items()])


VIEWS: dict[str, tuple[Callable[[Decoder], Record], Callable[[Record], None]]] = {
    "graph": (graph_record, show_graph),
    "schedule": (schedule_record, show_schedule),
    "kernel": (kernel_record, show_kernel),
}
