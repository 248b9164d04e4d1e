"""The choice between rows and queue: estimated for every part, recorded, and followed."""

from dataclasses import replace

import pytest
from random_graphs import random_graph
from test_moe_graph import make_config, make_operators

from event_tensor.derive import derive_events
from event_tensor.instantiate import instantiate
from frontend.routings import sample_routings
from persistent_runtime.megakernel import build_schedule
from scheduling.choose import choose_placement
from scheduling.policies import dispatched_calls
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
    for target in (CHEAP_QUEUE, DEAR_QUEUE):
        queued, choices = choose_placement(graph, bindings, (), target)
        assert sum(c.runs for c in choices) >= 1
        for choice in choices:
            assert choice.in_queue == (choice.queue_us < choice.rows_us)
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
