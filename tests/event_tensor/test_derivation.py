"""Derived events: by hand for each case, and over random graphs against program order."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from program_order import OrderError, Program, ordered_by_events
from random_graphs import RandomGraph, graphs, random_graph

from event_tensor.derive import derive_events
from event_tensor.device_function import (
    WHOLE,
    DeviceFunction,
    Indexed,
    Tile,
    reads,
    updates,
    writes,
)
from event_tensor.edges import span, trigger
from event_tensor.errors import RaceError
from event_tensor.graph import Graph
from event_tensor.instantiate import instantiate
from event_tensor.printer import format_graph, format_tasks
from event_tensor.symbols import Symbol, minimum
from event_tensor.tensors import EventTensor, TensorSpec
from event_tensor.verify import verify

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
n = Symbol("n")


def function(name, *operands, axes=("i",)):
    return DeviceFunction(name, axes, operands)


def producer_and_consumer(p_size, c_size, dim):
    """y = f(x) by tiles of p_size, z = g(y) by tiles of c_size; None stands for all of y."""
    x, y, z = (TensorSpec(name, (dim,)) for name in "xyz")
    graph = Graph("pair")
    graph.call_device(
        function("produce", reads("x", Tile("i", p_size)), writes("y", Tile("i", p_size))),
        args=[x, y])
    whole = c_size is None
    graph.call_device(
        function("consume", reads("y", WHOLE if whole else Tile("i", c_size)),
                 writes("z", Tile("i", c_size or 4))), args=[y, z])
    return derive_events(graph)


@pytest.mark.parametrize("p_size, c_size, n_is, shape, counts, producer_map, consumer_map", [
    pytest.param(4, 4, 10, "ceil_div(n, 4)", [1, 1, 1], "i", "i", id="equal"),
    pytest.param(2, 6, 10, "ceil_div(n, 6)", [3, 2], "i // 3", "i", id="consumer-multiple"),
    pytest.param(6, 2, 10, "ceil_div(n, 6)", [1, 1], "i", "i // 3", id="producer-multiple"),
    pytest.param(4, 6, 10, None, [3], "()", "()", id="neither"),
    pytest.param(4, None, 10, None, [3], "()", "()", id="whole"),
])
def test_four_cases(p_size, c_size, n_is, shape, counts, producer_map, consumer_map):
    graph = producer_and_consumer(p_size, c_size, n)
    (event,) = graph.events()
    assert [repr(d) for d in event.shape] == ([shape] if shape else [])
    produce, consume = graph.calls
    assert repr(produce.out_edges[0].map) == f"i -> {producer_map}"
    assert repr(consume.in_edges[0].map) == f"i -> {consumer_map}"
    assert not produce.in_edges and not consume.out_edges
    assert verify(graph, {"n": n_is}).event_count.tolist() == counts


def test_symbolic_sizes_that_divide():
    graph = producer_and_consumer(2, 8, 8 * n)
    assert [repr(d) for d in graph.events()[0].shape] == ["n"]
    for value in (1, 2, 5):
        assert verify(graph, {"n": value}).event_count.tolist() == [4] * value


def test_two_dimensions_are_cases_of_their_own():
    m = Symbol("m")
    a, b = TensorSpec("a", (n, m)), TensorSpec("b", (n, m))
    graph = Graph("two")
    graph.call_device(function("p", writes("a", Tile("i", 2), Tile("j", 3)), axes=("i", "j")),
                      args=[a])
    graph.call_device(
        function("c", reads("a", Tile("i", 4), Tile("j", 2)),
                 writes("b", Tile("i", 4), Tile("j", 2)), axes=("i", "j")), args=[a, b])
    graph = derive_events(graph)
    (event,) = graph.events()
    assert repr(event) == "E_p[ceil_div(n, 4)]"  # rows: two to one; columns do not fit
    assert verify(graph, {"n": 8, "m": 7}).event_count.tolist() == [6, 6]


def test_implied_edges_are_dropped():
    """c reads what a and b wrote, tile by tile: the wait for a comes with the wait for b."""
    x, y, z = (TensorSpec(name, (n,)) for name in "xyz")
    graph = Graph("chain")
    graph.call_device(function("a", writes("x", Tile("i", 4))), args=[x])
    graph.call_device(function("b", reads("x", Tile("i", 4)), writes("y", Tile("i", 4))),
                      args=[x, y])
    graph.call_device(
        function("c", reads("x", Tile("i", 4)), reads("y", Tile("i", 4)),
                 writes("z", Tile("i", 4))), args=[x, y, z])
    graph = derive_events(graph)
    assert [event.name for event in graph.events()] == ["E_a", "E_b"]
    assert [edge.event.name for edge in graph.calls[2].in_edges] == ["E_b"]
    assert len(graph.calls[0].out_edges) == 1


def test_an_update_reuses_its_tensor_in_order():
    x, y = TensorSpec("x", (n,)), TensorSpec("y", (n,))
    graph = Graph("reuse")
    graph.call_device(function("fill", writes("x", Tile("i", 4))), args=[x])
    graph.call_device(function("read", reads("x", WHOLE), writes("y", Tile("i", 2))), args=[x, y])
    graph.call_device(function("bump", updates("x", Tile("i", 4))), args=[x])
    graph = derive_events(graph)
    assert [edge.event.name for edge in graph.calls[2].in_edges] == ["E_read"]
    Program(verify(graph, {"n": 9})).replay(0)


def test_written_and_derived_events_of_figure_3_agree():
    from split_row_sum import derived_graph, written_graph

    for size in (1, 3, 17):
        written, derived = (verify(g(), {"n": size}) for g in (written_graph, derived_graph))
        for field in ("event_count", "wait_event", "wait_indptr", "notify_event", "notify_indptr"):
            np.testing.assert_array_equal(getattr(written, field), getattr(derived, field))
        assert written.event_count.tolist() == [4] * size
        assert list(written.event_shape.values()) == list(derived.event_shape.values()) == [(size,)]


def test_a_call_that_may_have_no_tasks_orders_nothing():
    """`touch` overwrites all of t, but not where m is 0: `use` must wait for `fill` as well."""
    t, o = TensorSpec("t", (n,)), TensorSpec("o", (n,))
    graph = Graph("empty")
    graph.call_device(function("fill", writes("t", Tile("i", 4))), args=[t])
    graph.call_device(function("touch", updates("t", WHOLE)), args=[t],
                      tile_num=(minimum(Symbol("m", at_least=0), 1),))
    graph.call_device(function("use", reads("t", Tile("i", 4)), writes("o", Tile("i", 4))),
                      args=[t, o])
    graph = derive_events(graph)
    for m in (0, 1):
        Program(verify(graph, {"n": 9, "m": m})).replay(1)


def test_a_triggered_call_orders_only_the_tiles_that_run():
    t, o, indptr = TensorSpec("t", (n,)), TensorSpec("o", (n,)), TensorSpec("indptr", (3,), "int32")
    e, f = EventTensor((2,), name="E"), EventTensor((), name="F")
    graph = Graph("triggered")
    graph.call_device(function("plan", writes("indptr", WHOLE)), args=[indptr], tile_num=(1,),
                      out_edges={e: lambda i: span(0, 2)})
    graph.call_device(function("fill", writes("t", Tile("i", 4))), args=[t],
                      out_edges={f: lambda i: ()})
    graph.call_device(function("some", updates("t", Tile("i", 4))), args=[t], in_edges={
        e: trigger(lambda e: span(indptr[e], indptr[e + 1])), f: lambda i: ()})
    graph.call_device(function("use", reads("t", Tile("i", 4)), writes("o", Tile("i", 4))),
                      args=[t, o])
    graph = derive_events(graph)
    for released in ([0, 0, 0], [0, 1, 1], [0, 1, 3]):
        table = verify(graph, {"n": 12}, {"indptr": np.array(released)})
        for seed in range(20):
            Program(table).replay(seed)


def test_a_call_without_axes_is_one_task():
    t = TensorSpec("t", (n,))
    graph = Graph("scalar")
    graph.call_device(function("one", writes("t", WHOLE), axes=()), args=[t])
    graph.call_device(function("two", updates("t", WHOLE), axes=()), args=[t])
    table = verify(derive_events(graph), {"n": 3})
    assert table.num_tasks == 2 and table.task_name(1) == "two[]"


def test_promised_places_may_be_written_at_once_and_are_read_after():
    cache, o, at = (TensorSpec(name, (n,)) for name in ("cache", "o", "at"))
    for distinct in (True, False):
        graph = Graph("scatter")
        graph.call_device(
            function("put", reads("at", Tile("i", 1)),
                     writes("cache", Indexed("at", "i", distinct=distinct))), args=[at, cache])
        graph.call_device(function("get", reads("cache", WHOLE), writes("o", Tile("i", 1))),
                          args=[cache, o])
        graph = derive_events(graph)
        if distinct:
            assert verify(graph, {"n": 5}).event_count.tolist() == [5]
        else:
            with pytest.raises(RaceError, match=r"put\[0\] and put\[1\] write overlapping"):
                verify(graph, {"n": 5})


def assert_program_order(random: RandomGraph, interleavings: int) -> None:
    graph = derive_events(random.graph)
    for bindings in random.bindings:
        table = verify(graph, bindings)
        program = Program(table)
        assert not len(program.unordered(ordered_by_events(table)))
        for seed in range(interleavings):
            assert sorted(program.replay(seed, workers=1 + seed % 7)) == list(
                range(table.num_tasks))


@given(graphs())
@settings(max_examples=250)
def test_one_derived_graph_serves_every_binding(random):
    assert_program_order(random, interleavings=2)


@pytest.mark.parametrize("seed", range(12))
def test_fifty_interleavings_keep_program_order(seed):
    assert_program_order(random_graph(seed), interleavings=50)


@given(graphs())
@settings(max_examples=200)
def test_without_edges_every_conflict_is_found(random):
    """`verify` objects exactly where two tasks of different calls conflict."""
    for bindings in random.bindings:
        table = instantiate(random.graph, bindings)
        program = Program(table)
        if program.conflicts().any():
            with pytest.raises(RaceError):
                verify(random.graph, bindings)
        else:
            verify(random.graph, bindings)
            program.replay(0)


def test_interleavings_show_missing_edges():
    """The memory that judges derived graphs does object: among graphs without their edges."""
    conflicts = seen = 0
    for seed in range(60):
        random = random_graph(seed)
        program = Program(instantiate(random.graph, random.bindings[-1]))
        if program.conflicts().any():
            conflicts += 1
            try:
                for interleaving in range(20):
                    program.replay(interleaving)
            except OrderError:
                seen += 1
    assert conflicts > 40 and seen >= 0.95 * conflicts


@given(graphs(), st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_edges_written_in_part_are_completed(random, choices):
    """Half of the waits are written, the rest is left to derivation."""
    graph = derive_events(random.graph)
    partly = derive_events(Graph("partly", [
        replace(call, in_edges=tuple(e for e in call.in_edges if choices.random() < 0.5))
        for call in graph.calls]))
    for bindings in random.bindings:
        table = verify(partly, bindings)
        assert not len(Program(table).unordered(ordered_by_events(table)))


@given(graphs())
@settings(max_examples=100)
def test_deriving_again_orders_nothing_anew(random):
    """Now and then it adds an event that others imply, never an order of two tasks."""
    graph = derive_events(random.graph)
    again = derive_events(graph)
    for bindings in random.bindings:
        tables = [instantiate(g, bindings) for g in (graph, again)]
        np.testing.assert_array_equal(*map(ordered_by_events, tables))


def test_printed_graph_and_tasks(golden):
    from split_row_sum import derived_graph

    graph = derived_graph()
    golden("split_row_sum_graph", format_graph(graph))
    golden("split_row_sum_tasks", format_tasks(instantiate(graph, {"n": 2})))
