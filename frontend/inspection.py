"""What `event-tensor inspect` shows of a compiled decode step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from event_tensor.printer import format_graph
from frontend.console import print_table
from frontend.decoder import Decoder
from persistent_runtime.cpu.disk_cache import cache_directory
from persistent_runtime.cpu.registry import COMPILATIONS
from scheduling.target import task_costs_us

Record = dict[str, Any]


def graph_record(decoder: Decoder) -> Record:
    return {"text": format_graph(decoder.graph)}


def show_graph(record: Record) -> None:
    print(record["text"], end="")


def schedule_record(decoder: Decoder) -> Record:
    """The schedule of a decode step of one request at a short context."""
    schedule, target = decoder.schedule, decoder.kernel.target
    table = schedule.table
    cost_us = task_costs_us(table, target)
    waits = np.diff(table.wait_indptr)
    return {
        "policy": schedule.policy, "tasks": table.num_tasks, "events": table.num_events,
        "waits_before_pruning": len(schedule.source.wait_event), "waits": len(table.wait_event),
        "bindings": dict(table.bindings),
        "workers": [{"worker": worker, "tasks": len(order),
                     "busy_us": round(float(cost_us[order].sum()), 1),
                     "waits": int(waits[order].sum())}
                    for worker, order in enumerate(schedule.orders)]}


def show_schedule(record: Record) -> None:
    bindings = ", ".join(f"{name}={value}" for name, value in record["bindings"].items())
    print_table(
        f"{record['policy']}: {record['tasks']} tasks, {record['events']} events, "
        f"{record['waits']} of {record['waits_before_pruning']} waits left ({bindings})",
        ["worker", "tasks", "estimated busy µs", "waits"],
        [[w["worker"], w["tasks"], w["busy_us"], w["waits"]] for w in record["workers"]])


def kernel_record(decoder: Decoder) -> Record:
    """Device functions with their compilation in this process, tile sizes, memory in bytes."""
    return {
        "dtype": decoder.dtype, "workers": decoder.num_workers,
        "compilations": decoder.compilations,
        "cache_directory": str(cache_directory()),
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
            "sparse_layers": sum(experts.is_sparse), "layers": decoder.config.num_layers,
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
