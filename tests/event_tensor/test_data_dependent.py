"""Data-dependent edges: the paper's mixture-of-experts figure, with its mistakes refused by name.

`topk` chooses experts for every token and lays their rows out in tiles; `group` copies a token's
row to its place and notifies the event that topk_ids names; an expert's event releases the tiles
of its own rows (paper section 2: update and trigger).
"""

from dataclasses import replace

import numpy as np
import pytest
from program_order import Program, ordered_by_events

from event_tensor.ancestors import ancestors
from event_tensor.conservative import conservative
from event_tensor.derive import derive_events
from event_tensor.device_function import WHOLE, DeviceFunction, Span, Tile, reads, writes
from event_tensor.edges import span, trace_edge, trigger
from event_tensor.errors import CountError, GraphError, RaceError
from event_tensor.graph import Graph
from event_tensor.instantiate import instantiate
from event_tensor.printer import format_graph, format_tasks
from event_tensor.symbols import Symbol
from event_tensor.tensors import INFERRED, RUNTIME, EventTensor, TensorSpec
from event_tensor.verify import verify

EXPERTS, TOP_K, TILE_M, WIDTH = 4, 2, 2, 8
tokens, tiles = Symbol("tokens"), Symbol("tiles")
i, k = Symbol("i"), Symbol("k")

hidden = TensorSpec("hidden", (tokens, WIDTH))
topk_ids = TensorSpec("topk_ids", (tokens, TOP_K), "int32")
place = TensorSpec("place", (tokens, TOP_K), "int32")  # row of `grouped` that a copy goes to
counts = TensorSpec("counts", (EXPERTS,), "int32")
indptr = TensorSpec("exp_indptr", (EXPERTS + 1,), "int32")  # tiles of expert e: indptr[e:e + 2]
grouped = TensorSpec("grouped", (tiles * TILE_M, WIDTH))
out = TensorSpec("out", (tiles * TILE_M, WIDTH))

topk = DeviceFunction("topk", ("i",), (
    reads("hidden", WHOLE, WHOLE), writes("topk_ids", WHOLE, WHOLE), writes("place", WHOLE, WHOLE),
    writes("counts", WHOLE), writes("indptr", WHOLE)))
group = DeviceFunction("group", ("i", "k"), (
    reads("hidden", Tile("i"), WHOLE), reads("topk_ids", Tile("i"), Tile("k")),
    reads("place", Tile("i"), Tile("k")), writes("grouped", Span(place[i, k], 1), WHOLE)))
gemm = DeviceFunction("grouped_gemm", ("t",), (
    reads("grouped", Tile("t", TILE_M), WHOLE), writes("out", Tile("t", TILE_M), WHOLE)))


def moe_graph(*, expert_count=RUNTIME, count_from=counts, ordered=True, topk_first=True,
              releases=lambda e: span(indptr[e], indptr[e + 1])):
    routed = EventTensor((), name="E_topk")
    experts = EventTensor((EXPERTS,), expert_count, "E_expert", count_from)
    graph = Graph("moe")

    def call_topk():
        graph.call_device(topk, tile_num=(1,), args=[hidden, topk_ids, place, counts, indptr],
                          out_edges={routed: lambda i: ()} if ordered else {})

    if topk_first:
        call_topk()
    graph.call_device(group, args=[hidden, topk_ids, place, grouped],
                      in_edges={routed: lambda i, k: ()} if ordered else {},
                      out_edges={experts: lambda i, k: topk_ids[i, k]})
    if not topk_first:
        call_topk()
    graph.call_device(gemm, args=[grouped, out], in_edges={experts: trigger(releases)})
    return graph


def routing(ids):
    """(bindings, runtime) as topk would leave them for these expert choices [tokens, TOP_K]."""
    ids = np.array(ids)
    count = np.bincount(ids.ravel(), minlength=EXPERTS)
    first_tile = np.concatenate([[0], np.cumsum(-(-count // TILE_M))])
    rows, taken = np.zeros_like(ids), np.zeros(EXPERTS, int)
    for token in range(len(ids)):
        for choice in range(TOP_K):
            expert = ids[token, choice]
            rows[token, choice] = first_tile[expert] * TILE_M + taken[expert]
            taken[expert] += 1
    bindings = {"tokens": len(ids), "tiles": len(ids) * TOP_K // TILE_M + EXPERTS}
    return bindings, {"topk_ids": ids, "place": rows, "counts": count, "exp_indptr": first_tile}


ROUTINGS = {
    "uniform": [[t % EXPERTS, (t + 1) % EXPERTS] for t in range(6)],
    "one-expert-gets-all": [[2, 2]] * 5,
    "empty-experts": [[0, 3], [3, 0], [0, 3]],
    "one-token": [[1, 2]],
}


@pytest.mark.parametrize("ids", ROUTINGS.values(), ids=ROUTINGS.keys())
def test_every_routing_verifies_and_keeps_program_order(ids):
    bindings, runtime = routing(ids)
    table = verify(moe_graph(), bindings, runtime)
    released = int(runtime["exp_indptr"][-1])
    assert table.num_tasks == 1 + len(ids) * TOP_K + released  # tiles nobody releases do not run
    assert table.event_count[1:].tolist() == runtime["counts"].tolist()
    program = Program(table)
    assert not len(program.unordered(ordered_by_events(table)))
    for seed in range(40):
        program.replay(seed)


def test_an_expert_does_not_wait_for_the_others():
    bindings, runtime = routing([[0, 1], [1, 0], [2, 3]])
    table = verify(moe_graph(), bindings, runtime)
    names = [table.task_name(t) for t in range(table.num_tasks)]
    order = ordered_by_events(table)
    tile = names.index("grouped_gemm[0]")  # expert 0: tokens 0 and 1
    earlier = {names[t] for t in np.flatnonzero(order[:, tile])}
    assert earlier == {"topk[0]", "group[0, 0]", "group[1, 1]"}


def test_printed(golden):
    bindings, runtime = routing([[0, 2], [2, 0]])
    golden("moe_graph", format_graph(moe_graph()))
    golden("moe_tasks", format_tasks(instantiate(moe_graph(), bindings, runtime)))


def rejected(error, match, graph, ids=((0, 1), (2, 3)), **changed):
    bindings, runtime = routing(ids)
    with pytest.raises(error, match=match):
        verify(graph, bindings, {**runtime, **changed})


def test_map_read_before_any_call_writes_its_tensor():
    rejected(GraphError, "depends on 'topk_ids', which no call before it writes",
             moe_graph(topk_first=False))


def test_map_read_before_its_tensor_must_be_complete():
    rejected(RaceError, "'topk_ids'|'place'|'exp_indptr'|'counts'", moe_graph(ordered=False))


def test_counts_written_after_their_event_may_fire():
    """The tensor that holds the counts has no reader among the operands: only the edge needs it."""
    late = TensorSpec("late_counts", (EXPERTS,), "int32")
    graph = moe_graph(count_from=late)
    write = DeviceFunction("count", ("i",), (writes("counts", WHOLE),))
    calls = Graph("moe")
    calls.call_device(write, tile_num=(1,), args=[late])
    for call in graph.calls:
        calls.call_device(call.function, args=call.args, tile_num=call.tile_num,
                          in_edges={e.event: _again(e) for e in call.in_edges},
                          out_edges={e.event: _again(e) for e in call.out_edges})
    rejected(RaceError, "from 'late_counts' before count.0. must have written it", calls,
             late_counts=np.array([1, 1, 1, 1]))


def _again(edge):
    def indices(*coordinates):
        replaced = dict(zip(edge.map.axes, coordinates, strict=True))
        return tuple(
            span(part.start.substitute(replaced), part.stop.substitute(replaced))
            if edge.is_trigger else part.substitute(replaced) for part in edge.map.indices)

    if edge.is_trigger:
        return trigger(lambda e: indices(e))
    return (lambda i: indices(i)) if len(edge.map.axes) == 1 else (lambda i, k: indices(i, k))


def test_missing_runtime_values():
    bindings, runtime = routing([[0, 1]])
    for name in ("topk_ids", "exp_indptr", "place"):
        values = {key: value for key, value in runtime.items() if key != name}
        with pytest.raises(GraphError, match=f"'{name}', whose values exist only at run time"):
            verify(moe_graph(), bindings, values)


@pytest.mark.parametrize("count", [INFERRED, RUNTIME], ids=repr)
def test_counts_of_update_edges_cannot_be_inferred(count):
    rejected(GraphError, "declare wait_count=RUNTIME and count_from",
             moe_graph(expert_count=count, count_from=None))


def test_a_declared_count_must_hold_for_every_event():
    everyone_to_everyone = [[0, 1], [2, 3], [1, 0], [3, 2]]
    graph = moe_graph(expert_count=2, count_from=None)
    verify(graph, *routing(everyone_to_everyone))
    rejected(CountError, "would never be reached", graph, ids=[[0, 1], [1, 0]])


@pytest.mark.parametrize("values, match", [
    ([0, 2, 1, 3, 4], "which no task notifies|no chain of events|release the same tile"),
    ([0, 1, 2, 3, 9], "releases tiles 3:9 of grouped_gemm, which has 6"),
    ([-1, 1, 2, 3, 4], "releases tiles -1:1"),
])
def test_trigger_ranges_out_of_range_or_shuffled(values, match):
    rejected((GraphError, RaceError), match, moe_graph(), exp_indptr=np.array(values))


def test_trigger_ranges_that_overlap():
    rejected(GraphError, "release the same tile of grouped_gemm",
             moe_graph(releases=lambda e: span(indptr[e], indptr[e + 1] + 1)))


def test_counts_that_contradict_the_routing():
    for wrong, fate in (([1, 1, 1, 2], "would never be reached"), ([1, 1, 1, 0], "too early")):
        rejected(CountError, fate, moe_graph(), counts=np.array(wrong))


def test_expert_ids_out_of_range():
    rejected(GraphError, r"group\[1, 0\] maps to index 7 of E_expert", moe_graph(),
             topk_ids=np.array([[0, 1], [7, 3]]))


def test_rows_laid_out_in_another_experts_tiles():
    """Two tokens change places: expert tiles would read rows that nobody made them wait for."""
    _, runtime = routing([[0, 1], [2, 3]])
    swapped = runtime["place"][::-1].copy()
    rejected(RaceError, "overlapping parts of 'grouped'", moe_graph(), place=swapped)


def test_two_tokens_in_one_row():
    _, runtime = routing([[0, 1], [2, 3]])
    same = np.zeros_like(runtime["place"])
    rejected(RaceError, "write overlapping parts of 'grouped' and run at the same time",
             moe_graph(), place=same)


def test_a_trigger_on_the_producers_side():
    with pytest.raises(GraphError, match="a trigger belongs to the consumer's in_edges"):
        Graph("g").call_device(gemm, args=[grouped, out], out_edges={
            EventTensor((EXPERTS,)): trigger(lambda e: span(e, e + 1))})


def self_routing_graph(read):
    """Each tile chooses an expert and notifies the one that `read` finds in the choices."""
    chosen = TensorSpec("chosen", (tokens,), "int32")
    choose = DeviceFunction("choose", ("i",), (
        reads("hidden", Tile("i"), WHOLE), writes("chosen", Tile("i"))))
    experts = EventTensor((EXPERTS,), RUNTIME, "E_expert", counts)
    first = DeviceFunction("count", ("z",), (writes("counts", WHOLE),))
    graph, counted = Graph("self_routing"), EventTensor((), name="E_count")
    graph.call_device(first, tile_num=(1,), args=[counts], out_edges={counted: lambda z: ()})
    graph.call_device(choose, args=[hidden, chosen], in_edges={counted: lambda i: ()},
                      out_edges={experts: lambda i: read(chosen, i)})
    return graph


def test_a_task_may_notify_by_what_it_wrote_itself():
    sample = {"chosen": np.array([0, 1, 1]), "counts": np.array([1, 2, 0, 0])}
    verify(self_routing_graph(lambda chosen, i: chosen[i]), {"tokens": 3}, sample)


def test_a_task_may_not_notify_by_what_its_neighbour_writes():
    sample = {"chosen": np.array([0, 1, 1]), "counts": np.array([1, 2, 0, 0])}
    with pytest.raises(RaceError, match="another tile of choose writes"):
        verify(self_routing_graph(lambda chosen, i: chosen[(i + 1) % 3]), {"tokens": 3}, sample)


def declared_twice(graph):
    """The graph with its first call repeated: two calls write what the edges read."""
    twice = Graph("twice")
    for call in (graph.calls[0], *graph.calls):
        twice.call_device(call.function, args=call.args, tile_num=call.tile_num,
                          in_edges={e.event: _again(e) for e in call.in_edges},
                          out_edges={} if call is graph.calls[0] else {
                              e.event: _again(e) for e in call.out_edges})
    return twice


def test_the_conservative_form():
    """One event for all of E_expert, and one that tells when the tensors that edges read are
    complete; every task is there."""
    bindings, _ = routing([[0, 1], [2, 3]])
    graph = conservative(moe_graph())
    table = instantiate(graph, bindings)
    assert table.num_tasks == 1 + 4 + bindings["tiles"]
    assert [e.name for e in graph.events()] == ["E_topk", "E_topk_values", "E_expert_any"]
    assert graph.original is not graph and conservative(dense := Graph("dense")) is dense
    expert = next(b for e, b in table.event_begin.items() if e.stands_for is not None)
    assert table.event_count[expert] == 4
    tile = int(table.tasks_of(2)[0])
    order = ancestors(table)
    # whoever waits for an expert knows that topk is done, and of no row that it has come
    assert order.before(np.array([0, 1, 2, 3, 4]), np.full(5, tile)).tolist() == [
        True, False, False, False, False]


def test_tensors_that_edges_read_have_one_writer():
    with pytest.raises(GraphError, match="'topk_ids', which topk and topk_1 write"):
        conservative(declared_twice(moe_graph()))


def test_tiles_that_may_not_run_are_not_counted_on_the_device():
    graph = moe_graph()
    finish = DeviceFunction("finish", ("t",), (reads("out", Tile("t", TILE_M), WHOLE),))
    done = EventTensor((tiles,), name="E_done")
    counted = EventTensor((tiles,), RUNTIME, "E_counted", counts)
    graph = Graph("moe", [replace(graph.calls[-1], out_edges=(trace_edge(
        done, "t->t", ("t",), "grouped_gemm"),)) if call is graph.calls[-1] else call
        for call in graph.calls])
    graph.call_device(finish, args=[out], in_edges={done: "t->t"}, out_edges={counted: "t->t"})
    with pytest.raises(GraphError, match="tiles of finish may not run, and they notify E_counted"):
        conservative(graph)


def test_an_event_must_not_mix_tiles_that_run_and_tiles_that_may_not():
    finish = DeviceFunction("finish", ("i",), (reads("out", WHOLE, WHOLE),))
    graph = moe_graph()
    graph.call_device(finish, args=[out], tile_num=(1,))
    with pytest.raises(GraphError, match="finish waits for E_grouped_gemm, which counts tasks "
                                         "that may not run"):
        verify(derive_events(graph), *routing([[0, 1], [2, 3]]))
