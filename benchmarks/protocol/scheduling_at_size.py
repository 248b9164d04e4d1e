"""How long the host needs for a new shape: a decode step of an 8B model on 132 workers.

    python benchmarks/protocol/scheduling_at_size.py

The graph is that of Qwen3-8B (36 layers, hidden 4096) at a context of 4096, built by the frontend
without weights, in the tiles that it chooses for 132 workers. Prints a table and writes
benchmarks/results/scheduling_at_size.json; each time is the median of `--repeats` runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.shapes import PUBLISHED  # noqa: E402
from event_tensor.derive import derive_events  # noqa: E402
from event_tensor.graph import Graph  # noqa: E402
from event_tensor.instantiate import instantiate  # noqa: E402
from event_tensor.verify import verify_table  # noqa: E402
from frontend.families.decoder import build_step  # noqa: E402
from frontend.families.read_config import parse_config  # noqa: E402
from frontend.graph.operators import Limits, Operators  # noqa: E402
from frontend.graph.tiles import choose_kv_splits, choose_tiles  # noqa: E402
from scheduling.merge import merge_events  # noqa: E402
from scheduling.policies import critical_path, round_robin  # noqa: E402
from scheduling.prune import prune_waits  # noqa: E402
from scheduling.simulator import estimate_makespan  # noqa: E402
from scheduling.target import H200  # noqa: E402
from scheduling.verify_schedule import verify_schedule  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "scheduling_at_size.json"
CONTEXT = 4096
CONFIG = parse_config(PUBLISHED["qwen3-8b"], None)
TILES = choose_tiles(CONFIG, H200, "bfloat16")
BINDINGS = {"tokens": 1, "logit_rows": 1, "context": CONTEXT,
            "kv_splits": choose_kv_splits(CONFIG, H200, 1, CONTEXT)}
TARGET_S = 2.0  # instantiate, critical_path, prune_waits and verify_schedule together
PER_SHAPE = ("instantiate", "critical_path", "prune_waits", "verify_schedule")


def decode_step() -> Graph:
    """The calls of one step, with no event."""
    operators = Operators(CONFIG, TILES, Limits(1, CONTEXT, CONTEXT + 1, 1),
                          "bfloat16").for_decoding()
    build_step(operators)
    return operators.graph


class Clock:
    """Seconds of each step, one entry per repeat."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def __call__(self, name: str, action: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = action()
        self.seconds.setdefault(name, []).append(time.perf_counter() - begin)
        return result


def measure(clock: Clock) -> dict[str, Any]:
    """One pass over everything; returns what was built, in numbers."""
    graph = clock("build", decode_step)
    derived = clock("derive", lambda: derive_events(graph))
    table = clock("instantiate", lambda: instantiate(derived, BINDINGS))
    clock("verify_table", lambda: verify_table(table))
    placed = clock("critical_path", lambda: critical_path(table, H200))
    pruned = clock("prune_waits", lambda: merge_events(prune_waits(placed)))
    clock("verify_schedule", lambda: verify_schedule(pruned))
    estimate = clock("estimate_makespan", lambda: estimate_makespan(pruned, H200))
    baseline = estimate_makespan(prune_waits(round_robin(table, H200)), H200)
    return {
        "calls": len(derived.calls), "tasks": table.num_tasks, "events": table.num_events,
        "waits": len(table.wait_event), "waits_after_pruning": len(pruned.table.wait_event),
        "notifies": len(table.notify_event),
        "notifies_after_pruning": len(pruned.table.notify_event),
        "estimated_step_us": {"critical_path": round(estimate.makespan_us, 1),
                              "round_robin": round(baseline.makespan_us, 1)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    clock = Clock()
    for _ in range(options.repeats):
        sizes = measure(clock)
    seconds = {name: statistics.median(times) for name, times in clock.seconds.items()}
    per_shape = sum(seconds[name] for name in PER_SHAPE)
    for name, count in sizes.items():
        print(f"{name:24} {count}")
    for name, value in seconds.items():
        print(f"{name:24} {value:7.3f} s{'  *' if name in PER_SHAPE else ''}")
    print(f"{'* per new shape':24} {per_shape:7.3f} s, wanted at most {TARGET_S} s")
    result = {
        "model": "Qwen3-8B shape", "target": H200.name, "workers": H200.workers,
        "bindings": BINDINGS,
        "tile_columns": {name: getattr(TILES, name)
                         for name in ("q", "kv", "output", "gate_up", "down", "lm_head")},
        **sizes, "repeats": options.repeats,
        "median_seconds": {name: round(value, 4) for name, value in seconds.items()},
        "best_seconds": {name: round(min(times), 4) for name, times in clock.seconds.items()},
        "per_new_shape_seconds": round(per_shape, 4), "wanted_seconds": TARGET_S,
        "python": platform.python_version(), "machine": platform.machine()}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
