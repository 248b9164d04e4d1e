"""The choice between rows and queue: estimated for every part, recorded, and followed."""

from dataclasses import replace

import pytest
from random_graphs import random_graph
from test_moe_graph import make_config, make_operators

from event_tensor.derive import derive_events
from event_tensor.instantiate import instantiate
from frontend.graph.routings import sample_routings
from scheduling import choose
from scheduling.choose import choose_placement
from scheduling.pipeline import build_schedule
from scheduling.policies import dispatched_calls
from scheduling.schedule import Choice
from scheduling.target import H200, generic_cpu

CHEAP_QUEUE = replace(generic_cpu(4), pop_us=0.0, dependency_us=0.0, spread=0.5)
DEAR_QUEUE = replace(generic_cpu(4), pop_us=1e4)


@pytest.mark.parametrize("seed", range(12))
def test_a_dense_graph_goes_where_the_estimate_is_lower(seed):
    case = random_graph(seed)
    graph, bindings = derive_events(case.graph), case.bindings[0]
    if not instantiate(graph, bindings).num_tasks:
        return
    assert not choose_placement(graph, bindings, (), H200.with_workers(3))[0]
    for target in (CHEAP_QUEUE, DEAR_QUEUE, replace(CHEAP_QUEUE, rows_must_save=0.0)):
        queued, choices = choose_placement(graph, bindings, (), target)
        assert sum(c.runs for c in choices) >= 1
        for choice in choices:
            queue_us = choice.queue_us * (1 - target.rows_must_save)
            assert choice.in_queue == (queue_us < choice.rows_us)
            assert "us per pop" in choice.reason
        assert bool(queued) == any(c.in_queue for c in choices)
        schedule = build_schedule(graph, bindings, "auto", target)
        assert schedule.choices == choices
        assert set(schedule.table.call[schedule.queued].tolist()) <= queued
    assert not choose_placement(graph, bindings, (), DEAR_QUEUE)[0]


@pytest.mark.parametrize("tokens", [16, 40])
def test_dispatch_and_dense_parts_are_chosen_apart(tokens):
    config = make_config(num_hidden_layers=3, mlp_only_layers=[])
    graph = derive_events(make_operators(config).graph)
    bindings = {"tokens": tokens, "logit_rows": 1, "context": tokens, "kv_splits": 1}
    samples = sample_routings(config, bindings)
    dispatched = dispatched_calls(graph)
    for target, in_queue in ((CHEAP_QUEUE, True), (DEAR_QUEUE, False)):
        queued, choices = choose_placement(graph, bindings, samples, target)
        of_dispatch = [c for c in choices if any("expert_down" in name for name in c.calls)]
        assert [c.runs for c in of_dispatch] == [3]  # the layers are alike
        assert of_dispatch[0].in_queue == in_queue
        assert (dispatched <= queued) == in_queue
        schedule = build_schedule(graph, bindings, "auto", target, samples)
        assert schedule.kind == ("static" if not queued else schedule.kind)
        assert set(schedule.table.call[schedule.queued].tolist()) <= queued


@pytest.mark.parametrize("dense_saves, experts_cost, in_queue",
                         [(10.0, 25.0, True), (10.0, 35.0, False), (-1.0, 5.0, False)])
def test_tiles_that_may_not_run_are_all_queued_or_nothing_is(
        dense_saves, experts_cost, in_queue, monkeypatch):
    """Three kinds of dense runs would rather be queued than in rows, and the experts would not."""
    def estimate(graph, runs, is_dispatched, *_):
        rows_us = 100.0 + (-experts_cost if is_dispatched else dense_saves) / len(runs)
        return Choice(tuple(call.name for call in runs[0]), len(runs), rows_us > 100, rows_us,
                      100.0, "as the test has it")

    monkeypatch.setattr(choose, "_choose", estimate)
    config = make_config(num_hidden_layers=3, mlp_only_layers=[])
    graph = derive_events(make_operators(config).graph)
    bindings = {"tokens": 16, "logit_rows": 1, "context": 16, "kv_splits": 1}
    as_they_are = replace(generic_cpu(2), rows_must_save=0.0)
    schedule = build_schedule(graph, bindings, "auto", as_they_are,
                              sample_routings(config, bindings))
    assert len(schedule.choices) == 4
    assert [c.in_queue for c in schedule.choices] == [in_queue] * 4
    assert (schedule.kind == "static") != in_queue
    changed = [c for c in schedule.choices if c.reason != "as the test has it"]
    assert all("all queued or nothing is" in c.reason for c in changed)
    assert len(changed) == (1 if in_queue else 3 if dense_saves > 0 else 0)
