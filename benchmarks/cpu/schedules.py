"""The same tiles under every schedule: unfused, static, dynamic, dynamic_early, hybrid, and what
auto chooses.

    python benchmarks/cpu/schedules.py

A dense model's decode step, and one mixture-of-experts layer of the Qwen3-30B-A3B shape for 1 to
1,024 rows with uniform and skewed routing; schedules take turns within a round. Beside it the cost
of a dependency, a push and a pop, and what the simulator predicts on more workers than there are.
Writes benchmarks/results/schedules.json and schedules.png.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.cpu.moe_layer import MoeLayer, moe_graph, routed_rows  # noqa: E402
from benchmarks.make_model import model_config, write_model  # noqa: E402
from benchmarks.protocol.queue_costs import measure_costs  # noqa: E402
from benchmarks.shapes import PUBLISHED  # noqa: E402
from event_tensor.derive import derive_events  # noqa: E402
from event_tensor.instantiate import instantiate  # noqa: E402
from frontend.compile import compile_decode_loop  # noqa: E402
from frontend.families.read_config import parse_config  # noqa: E402
from frontend.graph.routings import layer_routing  # noqa: E402
from frontend.graph.tiles import EXPERT_ROWS  # noqa: E402
from frontend.report.bench.bandwidth import ReadBandwidth  # noqa: E402
from frontend.report.machine import provenance  # noqa: E402
from frontend.report.random_prompt import random_prompt  # noqa: E402
from persistent_runtime.backends import find_backend  # noqa: E402
from persistent_runtime.cpu.single_tile import run_tile  # noqa: E402
from persistent_runtime.functions.dense import linear_residual  # noqa: E402
from persistent_runtime.megakernel import Megakernel  # noqa: E402
from scheduling.schedule import Schedule  # noqa: E402
from scheduling.simulator import estimate_makespan  # noqa: E402
from scheduling.target import H200, Target, generic_cpu  # noqa: E402

RESULTS = Path(__file__).parents[1] / "results"
FIXED = ("unfused", "static", "dynamic", "dynamic_early", "hybrid")
SCHEDULES = (*FIXED, "auto")
ROWS = (1, 8, 64, 256, 1024)
SIMULATED_WORKERS = (2, 16, 132, 1000)
ZIPF = 1.2  # the skewed routing: expert k is chosen in proportion to 1 / (k + 1) ** ZIPF


def interleaved(sides: dict[str, Callable[[], float]], rounds: int, seed: int = 0
                ) -> dict[str, list[float]]:
    """Milliseconds of every side in every round, each round in another order."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    order = random.Random(seed)
    gc.collect()
    for _ in range(rounds):
        for name in order.sample(list(sides), len(sides)):
            times[name].append(sides[name]())
    return times


def table_of(times: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and how far each is behind the best fixed one by the median of round ratios."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    fixed = [name for name in medians if name != "auto"]
    best = min(fixed, key=lambda name: medians[name])
    return {"best": best, "ms": {name: round(value, 4) for name, value in medians.items()},
            "rounds_ms": {name: [round(v, 4) for v in values] for name, values in times.items()},
            "to_best": {name: round(statistics.median(
                own / other for own, other in zip(values, times[best], strict=True)), 4)
                for name, values in times.items()}}


def dense_case(shape: str, rounds: int, new_tokens: int) -> dict[str, Any]:
    """TPOT of batch-1 decoding, p50 of a generation."""
    with tempfile.TemporaryDirectory() as folder:
        directory = write_model(model_config(shape), Path(folder))
        decoders = {name: compile_decode_loop(directory, backend="cpu", schedule=name,
                                              max_context=256)
                    for name in SCHEDULES}
        prompt = random_prompt(decoders["static"], 32, 0)
        outputs: dict[str, list[int]] = {}

        def run(name: str) -> float:
            result = decoders[name].generate(prompt, max_new_tokens=new_tokens, ignore_eos=True,
                                             temperature=0.0)
            outputs[name] = result.output_ids
            assert result.tpot_ms is not None
            return result.tpot_ms["p50"]

        for name in SCHEDULES:
            run(name)
        times = interleaved({name: partial(run, name) for name in SCHEDULES}, rounds)
        same = all(output == outputs["static"] for output in outputs.values())
        return {"case": f"decode {shape}", "tokens_equal": same, **table_of(times),
                **choice_of({name: decoders[name].schedule for name in SCHEDULES})}


def moe_cases(layer: MoeLayer, rounds: int, rows: tuple[int, ...], target: Target
              ) -> list[dict[str, Any]]:
    kernels = {name: Megakernel(layer.graph, backend=find_backend("cpu"), policy=name,
                                samples=layer.samples)
               for name in SCHEDULES}
    cases = []
    for count in rows:
        for routing in ("uniform", "skewed"):
            ids = routed_rows(count, layer.experts, layer.top_k,
                              0.0 if routing == "uniform" else ZIPF)
            layer.set_rows(ids)
            reference, sides = None, {}
            for name, kernel in kernels.items():
                run = layer.runner(kernel, count)
                output = run.check()
                reference = output if reference is None else reference
                if not np.array_equal(output, reference):
                    raise RuntimeError(f"{name} differs from {next(iter(kernels))} at {count} rows")
                run.calibrate()
                sides[name] = run.step_ms
            record = {"case": f"MoE layer, {count} rows, {routing}", "rows": count,
                      "routing": routing, "tiles": layer.tiles_of(ids), "outputs_equal": True,
                      **table_of(interleaved(sides, rounds))}
            schedule = kernels["auto"].schedule({"tokens": count}).schedule
            record |= choice_of({name: kernel.schedule({"tokens": count}).schedule
                                 for name, kernel in kernels.items()})
            record["choices"] = [{"calls": [c.calls[0], c.calls[-1]], "runs": c.runs,
                                  "in_queue": c.in_queue, "rows_us": round(c.rows_us, 1),
                                  "queue_us": round(c.queue_us, 1), "early": c.early,
                                  "reason": c.reason}
                                 for c in schedule.choices]
            record["predicted_ms"] = predictions(layer, count, ids, target)
            cases.append(record)
            print(record["case"], record["ms"], "auto:", record["auto"], flush=True)
    return cases


def choice_of(schedules: dict[str, Schedule]) -> dict[str, Any]:
    """What auto chose, and which of the fixed ones it equals row for row."""
    chosen = schedules["auto"]
    return {"auto": chosen.kind, "auto_equals": [
        name for name, other in schedules.items() if name != "auto" and same_rows(chosen, other)]}


def same_rows(one: Schedule, other: Schedule) -> bool:
    """Whether two policies came to the same schedule, so that only noise tells them apart."""
    return (len(one.orders) == len(other.orders) and one.early == other.early
            and np.array_equal(one.queued, other.queued)
            and all(map(np.array_equal, one.orders, other.orders)))


def predictions(layer: MoeLayer, count: int, ids: np.ndarray[Any, Any], here: Target
                ) -> dict[str, dict[str, float]]:
    """Milliseconds by workers and schedule for this very routing, same tiles."""
    graph = derive_events(layer.graph)
    runtime = layer_routing(layer.name, ids, layer.experts, EXPERT_ROWS)
    result: dict[str, dict[str, float]] = {}
    for workers in SIMULATED_WORKERS:
        machine = here if workers == here.workers else (
            generic_cpu(workers) if workers < 100 else H200.with_workers(workers))
        table = instantiate(graph, {"tokens": count}, runtime)
        if table.num_tasks * workers > 20_000_000:  # the estimate of a queue looks at all workers
            continue
        by_name = {}
        for name in FIXED:
            by_name[name] = round(estimate_makespan(
                layer.sampled_schedule(graph, name, {"tokens": count}, runtime, machine),
                machine).makespan_us / 1e3, 4)
        result[str(workers)] = by_name
    return result


def measure_gflops() -> float:
    """What one core computes in a tile of EXPERT_ROWS rows whose weights are in its cache."""
    inner, columns = 2048, 512
    values = {"x": np.ones((EXPERT_ROWS, inner), np.float32),
              "weight": np.zeros((columns, inner), np.uint16),
              "residual": np.zeros((EXPERT_ROWS, columns), np.float32),
              "tile_m": EXPERT_ROWS, "tile_n": columns, "in_features": inner}
    seconds = []
    for _ in range(50):
        begin = time.perf_counter()
        run_tile(linear_residual, "bfloat16", values, (0, 0))
        seconds.append(time.perf_counter() - begin)
    return 2 * EXPERT_ROWS * inner * columns / statistics.median(seconds) / 1e9


def measured_target(bandwidth_gb_s: float, costs: dict[str, float]) -> Target:
    """This machine as the simulator sees it."""
    target = find_backend("cpu").target(None)
    return replace(target, bandwidth_gb_s=bandwidth_gb_s,
                   gflops=measure_gflops() * target.workers,
                   dependency_us=costs["dependency_us"], task_us=costs["task_us"],
                   pop_us=costs["pop_us"])


def draw(result: dict[str, Any], file: Path) -> None:
    """Bars of every case, relative to the unfused schedule of the same case."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = result["cases"]
    figure, axes = plt.subplots(figsize=(11, 4.2))
    width, middle = 0.8 / len(SCHEDULES), (len(SCHEDULES) - 1) / 2
    for k, name in enumerate(SCHEDULES):
        heights = [case["ms"]["unfused"] / case["ms"][name] for case in cases]
        axes.bar([x + (k - middle) * width for x in range(len(cases))], heights, width, label=name)
    axes.axhline(1.0, color="black", linewidth=0.6)
    axes.set_xticks(range(len(cases)), [
        case["case"].replace("MoE layer, ", "").replace("decode ", "decode\n").replace(", ", "\n")
        for case in cases], fontsize=8)
    axes.set_ylabel("speed, unfused = 1")
    axes.set_title(f"One set of tiles, {len(SCHEDULES)} schedules ({result['workers']} workers, "
                   f"{result['cpu']}); rows of a Qwen3-30B-A3B layer", fontsize=10)
    axes.legend(ncols=len(SCHEDULES), fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=110, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--shape", default="qwen3-0.6b", help="of the dense model")
    parser.add_argument("--experts", type=int, default=None, help="fewer, to fit small memories")
    parser.add_argument("--output", type=Path, default=RESULTS / "schedules.json")
    options = parser.parse_args()
    costs = measure_costs(options.rounds)
    print(costs, flush=True)
    bandwidth = ReadBandwidth(find_backend("cpu").target(None).workers).measure_gb_s()
    target = measured_target(bandwidth, costs)
    dense = dense_case(options.shape, options.rounds, 48)
    print(dense["case"], dense["ms"], flush=True)
    shape = PUBLISHED["qwen3-30b-a3b"] | (
        {"num_experts": options.experts} if options.experts else {})
    config = parse_config(shape | {"num_hidden_layers": 1}, None)
    layer = MoeLayer(config, moe_graph(config, target), max(options.rows))
    result = {"workers": target.workers, "rounds": options.rounds, "costs_us": costs,
              "bandwidth_gb_s": round(target.bandwidth_gb_s, 1),
              "gflops": round(target.gflops, 1), "zipf": ZIPF,
              "experts": layer.experts, "cases": [dense, *moe_cases(
                  layer, options.rounds, tuple(options.rows), target)], **provenance()}
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw(result, options.output.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
