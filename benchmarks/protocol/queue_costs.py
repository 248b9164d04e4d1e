"""What a dependency, a push and a pop cost on the CPU: graphs whose tasks do next to nothing."""

from __future__ import annotations

import random
import statistics

from benchmarks.protocol.dependency import CHAIN, Case, chain_graph, increment
from event_tensor.graph import Graph
from event_tensor.tensors import TensorSpec
from persistent_runtime.backends import find_backend
from persistent_runtime.megakernel import Megakernel

WIDTH = 64


def fan_graph(width: int, length: int) -> Graph:
    """`length` calls of `width` independent tasks each: all are pushed at once, then popped."""
    graph = Graph("fan")
    for k in range(length):
        graph.call_device(increment, args=[TensorSpec(f"x{k}" if k else "x", (width,), "int32")])
    return graph


def measure_costs(rounds: int) -> dict[str, float]:
    """Microseconds: task, dependency, pop, push. What a call within a step takes is the difference
    between a long and a short graph, the median over rounds."""
    backend = find_backend("cpu")
    workers = backend.target(None).workers

    def case(graph: Graph, length: int, policy: str, on: int) -> Case:
        return Case(Megakernel(graph, backend=backend, workers=on, policy=policy), length)

    cases = {
        "row": case(chain_graph(1, CHAIN), CHAIN, "round_robin", 1),
        "row_1": case(chain_graph(1, 1), 1, "round_robin", 1),
        "queue": case(chain_graph(1, CHAIN), CHAIN, "dynamic", 1),
        "queue_1": case(chain_graph(1, 1), 1, "dynamic", 1),
        "fan": case(fan_graph(WIDTH, 1), 1, "dynamic", 1)}
    if workers > 1:
        cases["alternating"] = case(chain_graph(1, CHAIN), CHAIN, "round_robin", 2)
        cases["alternating_1"] = case(chain_graph(1, 1), 1, "round_robin", 2)
    for each in cases.values():
        each.calibrate()
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(cases), len(cases)):
            cases[name].measure()

    def step(name: str) -> float:
        return statistics.median(
            (long - short) / (cases[name].steps[1] - cases[name].steps[0]) * 1e6
            for short, long in zip(*cases[name].seconds, strict=True))

    task = (step("row") - step("row_1")) / (CHAIN - 1)
    # a chain pushes and pops every task by itself; a fan pushes WIDTH tasks in one go
    both = (step("queue") - step("queue_1")) / (CHAIN - 1) - task
    pop = max((step("fan") - step("queue_1")) / (WIDTH - 1) - task, 0.0)
    found = {"task_us": task, "pop_us": pop, "push_us": max(both - pop, 0.0)}
    if workers > 1:
        found["dependency_us"] = max(
            (step("alternating") - step("alternating_1")) / (CHAIN - 1) - task, 0.0)
    else:
        found["dependency_us"] = 0.0
    return {name: round(value, 4) for name, value in found.items()}
