"""What a dependency, a task and a step cost, measured with tasks that do next to nothing.

    python benchmarks/protocol/dependency.py    # a GPU where torch sees one, else the CPU
    python benchmarks/protocol/dependency.py --backend cpu

A chain of one-element tasks runs on one worker and then alternates between two; layers whose tasks
each wait for all tasks of the layer before fill every worker. Each time is the slope between a
short and a long launch, so that launching is not in it, and comes from the fastest of all rounds:
the question is what the machine can do, not who else uses it. Writes
benchmarks/results/dependency_<cpu or gpu>.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
import triton.language as tl

sys.path.insert(0, str(Path(__file__).parents[2]))

from event_tensor.device_function import (  # noqa: E402
    WHOLE,
    DeviceFunction,
    Tile,
    reads,
    updates,
    writes,
)
from event_tensor.errors import UserError  # noqa: E402
from event_tensor.graph import Graph  # noqa: E402
from event_tensor.tensors import TensorSpec  # noqa: E402
from frontend.report.machine import gpu_name, provenance  # noqa: E402
from persistent_runtime.backends import Backend, find_backend  # noqa: E402
from persistent_runtime.cpu.bodies import arguments as cpu  # noqa: E402
from persistent_runtime.cpu.compile.registry import cpu_body  # noqa: E402
from persistent_runtime.gpu.bodies import arguments as gpu  # noqa: E402
from persistent_runtime.gpu.compile.registry import gpu_body  # noqa: E402
from persistent_runtime.megakernel import Megakernel  # noqa: E402

RESULTS = Path(__file__).parents[1] / "results"
CHAIN, LAYERS = 256, 32  # calls of a step; layers are even in number, two buffers alternate
SHORT, LONG = 0.05, 0.3  # wanted seconds of the two launches of a slope

increment = DeviceFunction("increment", ("i",), (updates("x", Tile("i", 1)),))
pass_on = DeviceFunction("pass_on", ("i",), (reads("x", WHOLE), writes("out", Tile("i", 1))))

INCREMENT, PASS_ON = cpu.record_offsets(increment), cpu.record_offsets(pass_on)
GPU_INCREMENT, GPU_PASS_ON = gpu.record_offsets(increment), gpu.record_offsets(pass_on)


@cpu_body(increment)
def increment_cpu(arguments, tile, step, scratch, formats):  # noqa: ANN001, ANN201
    cpu.operand(arguments, INCREMENT.x, cpu.INT32)[tile[0]] += 1


@cpu_body(pass_on)
def pass_on_cpu(arguments, tile, step, scratch, formats):  # noqa: ANN001, ANN201
    x = cpu.operand(arguments, PASS_ON.x, cpu.INT32)
    neighbour = (tile[0] + 1) % cpu.dim(arguments, PASS_ON.x, 0)
    cpu.operand(arguments, PASS_ON.out, cpu.INT32)[tile[0]] = x[neighbour] + 1


@gpu_body(increment, configure=lambda shape: shape.interpreted)
@triton.jit
def increment_gpu(arguments, tile, step, CONFIG: tl.constexpr):  # noqa: ANN001, ANN201
    x = gpu.operand(arguments, GPU_INCREMENT.x, tl.int32) + tile[0]
    value = tl.load(x)
    tl.debug_barrier()  # every thread has read what one thread is about to overwrite
    tl.store(x, value + 1)


@gpu_body(pass_on, configure=lambda shape: shape.interpreted)
@triton.jit
def pass_on_gpu(arguments, tile, step, CONFIG: tl.constexpr):  # noqa: ANN001, ANN201
    neighbour = (tile[0] + 1) % gpu.dim(arguments, GPU_PASS_ON.x, 0)
    value = tl.load(gpu.operand(arguments, GPU_PASS_ON.x, tl.int32) + neighbour)
    tl.store(gpu.operand(arguments, GPU_PASS_ON.out, tl.int32) + tile[0], value + 1)


def chain_graph(width: int, length: int) -> Graph:
    """`length` calls, one after the other, of `width` tasks that each add 1 to their element."""
    graph, x = Graph("chain"), TensorSpec("x", (width,), "int32")
    for _ in range(length):
        graph.call_device(increment, args=[x])
    return graph


def layers_graph(width: int, length: int) -> Graph:
    """`length` layers of `width` tasks, each of which waits for the whole layer before."""
    graph = Graph("layers")
    buffers = [TensorSpec(name, (width,), "int32") for name in "xy"]
    for layer in range(length):
        graph.call_device(pass_on, args=[buffers[layer % 2], buffers[(layer + 1) % 2]])
    return graph


@dataclass(slots=True)
class Case:
    """A graph on some workers. Every step adds `length` to every element of x."""

    kernel: Megakernel
    length: int
    steps: tuple[int, int] = (0, 0)  # of the short and of the long launch
    seconds: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    def run(self, steps: int) -> float:
        """Seconds of one launch, from the host's call to its end. Checks the result."""
        spec = self.kernel.graph.tensors()[0]
        buffers = self.kernel.backend.buffers()
        for tensor in self.kernel.graph.tensors():
            buffers.allocate(tensor, tuple(int(d.evaluate({})) for d in tensor.shape))
        segment = self.kernel.segment({}, buffers, steps=steps)
        begin = time.perf_counter()
        self.kernel.launch([segment]).wait(poll_s=2e-4)
        seconds = time.perf_counter() - begin
        found = buffers.array(spec)
        if not (found == steps * self.length).all():
            raise RuntimeError(f"{self.kernel.graph.name} of {self.length} on "
                               f"{self.kernel.num_workers} workers: {steps} steps left "
                               f"{found.tolist()}, expected {steps * self.length} everywhere")
        return seconds

    def calibrate(self) -> None:
        """Chooses the steps of both launches so that they take about the wanted time."""
        self.run(1)
        steps = 8
        while (seconds := min(self.run(steps) for _ in range(3))) < SHORT:
            steps *= 2
        self.steps = max(int(steps * SHORT / seconds), 1), max(int(steps * LONG / seconds), 2)

    def measure(self) -> None:
        for steps, seconds in zip(self.steps, self.seconds, strict=True):
            seconds.append(self.run(steps))

    @property
    def step_us(self) -> float:
        """Of the fastest round."""
        short, long = self.seconds
        return (min(long) - min(short)) / (self.steps[1] - self.steps[0]) * 1e6

    def record(self) -> dict[str, Any]:
        slopes = [(long - short) / (self.steps[1] - self.steps[0]) * 1e6
                  for short, long in zip(*self.seconds, strict=True)]
        return {"calls": self.length, "workers": self.kernel.num_workers, "steps": self.steps,
                "step_us": round(self.step_us, 4),
                "median_step_us": round(statistics.median(slopes), 4)}


def make_cases(backend: Backend, workers: int) -> dict[str, Case]:
    """Tasks go to workers in turn, so a chain alternates between two workers."""

    def case(graph: Callable[[int, int], Graph], width: int, length: int, on: int) -> Case:
        return Case(Megakernel(graph(width, length), backend=backend, workers=on,
                               policy="round_robin"), length)

    cases = {}
    for on in sorted({1, 2, workers}):
        cases[f"chain_{on}"] = case(chain_graph, 1, CHAIN, on)
        cases[f"single_{on}"] = case(chain_graph, 1, 1, on)
    cases["layers"] = case(layers_graph, workers, LAYERS, workers)
    cases["two_layers"] = case(layers_graph, workers, 2, workers)
    return cases


def results(cases: dict[str, Case], workers: int) -> dict[str, float]:
    """Microseconds; what a call within a step takes is a difference of two lengths of the step."""

    def per_call(many: str, few: str) -> float:
        return (cases[many].step_us - cases[few].step_us) / (
            cases[many].length - cases[few].length)

    task = per_call("chain_1", "single_1")
    values = {"task": task}  # one after the other on the same worker, without a wait
    for on in sorted({2, workers}):
        alternating = per_call(f"chain_{on}", f"single_{on}")
        values[f"task_alternating_between_{on}_workers"] = alternating
        values[f"dependency_between_{on}_workers"] = alternating - task
    # every task waits for an event that every worker notifies: fan-in and fan-out at once
    layer = per_call("layers", "two_layers")
    values["all_to_all_layer"] = layer
    values["all_to_all_dependency"] = layer - task
    for on in sorted({1, 2, workers}):  # one task, then the barrier at the end of the step
        values[f"step_of_{on}_workers"] = cases[f"single_{on}"].step_us
    return {name: round(value, 4) for name, value in values.items()}


def device_facts(backend: Backend) -> dict[str, Any]:
    if backend.name == "cpu":
        return {}
    import torch

    return {"gpu": gpu_name(), "cuda": torch.version.cuda}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=None, help="of the cases with all workers")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error(f"--rounds is {options.rounds}; give at least 1")
    try:
        backend = find_backend(options.backend)
        workers = backend.target(options.workers).workers
        if workers < 2:
            raise UserError("a dependency between workers needs at least 2 of them")
        cases = make_cases(backend, workers)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for case in cases.values():
        case.calibrate()
    order = random.Random(0)
    for _ in range(options.rounds):
        for case in order.sample(list(cases.values()), len(cases)):
            case.measure()
    found = results(cases, workers)
    record = {
        "backend": backend.name, "workers": workers, "rounds": options.rounds,
        "chain": CHAIN, "layers": LAYERS, "microseconds": found,
        "cases": {name: case.record() for name, case in cases.items()},
        **device_facts(backend), **provenance()}
    name = "cpu" if backend.name == "cpu" else "gpu"
    output = options.output or RESULTS / f"dependency_{name}.json"
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for key, value in found.items():
        print(f"{key:36s} {value:9.3f} us")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
