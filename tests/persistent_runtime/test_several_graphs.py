"""One compilation for several graphs: each has its own schedules, a launch may run them all."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("numba")

from mix_kernel import Program, executable, run_in_program_order, start_memory
from random_graphs import random_graph

from event_tensor.errors import UserError
from event_tensor.graph import Graph
from event_tensor.instantiate import instantiate
from event_tensor.symbols import as_expr
from persistent_runtime.launch.memory import Buffers
from persistent_runtime.megakernel import Megakernel

SEEDS = (3, 8, 21)


def bound(part, bindings):
    """(segment of one step, its memory, what program order leaves there)"""
    program = Program(instantiate(part.graph, bindings))
    memory, buffers = start_memory(program, "int32"), Buffers()
    for spec in part.graph.tensors():
        buffers.bind(spec, memory[spec.name])
    return part.segment(bindings, buffers), memory, run_in_program_order(program, "int32")


@pytest.mark.parametrize("policy", ["static", "dynamic", "auto"])
def test_a_launch_runs_segments_of_all_graphs(policy):
    examples = [random_graph(seed) for seed in SEEDS]
    kernel = Megakernel(*(executable(example.graph, "int32") for example in examples),
                        workers=3, policy=policy)
    assert len(kernel.parts) == len(SEEDS) and kernel.compilations == 1
    runs = [bound(part, example.bindings[-1])
            for part, example in zip(kernel.parts, examples, strict=True)]
    kernel.launch([segment for segment, _, _ in runs]).wait()
    for _, memory, expected in runs:
        for name, cells in expected.items():
            np.testing.assert_array_equal(memory[name], cells)
    assert kernel.launches == 1


def test_a_graph_that_is_added_shares_the_compilation():
    example = random_graph(SEEDS[0])
    kernel = Megakernel(executable(example.graph, "int32"), workers=2)
    part = kernel.add(executable(example.graph, "int32"))
    segment, memory, expected = bound(part, example.bindings[0])
    kernel.launch([segment]).wait()
    for name, cells in expected.items():
        np.testing.assert_array_equal(memory[name], cells)
    assert kernel.compilations == 1 and kernel.parts[1] is part


def test_a_graph_that_calls_what_was_not_compiled_is_refused_by_name():
    example, other = random_graph(SEEDS[0]), random_graph(SEEDS[1])
    graph = executable(example.graph, "int32")
    kernel = Megakernel(graph, workers=2)
    strange = executable(other.graph, "float32")
    called = rf"{strange.calls[0].name} .* calls mix_float32_\w+, which"
    with pytest.raises(UserError, match=called):
        kernel.add(strange)
    first, *others = graph.calls
    changed = replace(first, parameters={**first.parameters, "salt": as_expr(1 << 20)})
    with pytest.raises(UserError, match=f"{first.name} .* sizes that .* was not compiled for"):
        kernel.add(Graph("changed", [changed, *others]))
    assert len(kernel.parts) == 1


def test_a_megakernel_needs_a_graph():
    with pytest.raises(UserError, match="at least one"):
        Megakernel()
