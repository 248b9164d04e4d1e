"""Ancestor sets against sets of Python, over graphs of every kind; overlapping boxes likewise."""

import numpy as np
import pytest
from dispatch_graphs import dispatch_graph
from random_graphs import random_graph

from event_tensor.ancestors import ancestors
from event_tensor.conservative import conservative, conservative_events
from event_tensor.derive import derive_events
from event_tensor.instantiate import instantiate
from event_tensor.races import _overlap
from event_tensor.waves import waves


def sets_of(table):
    """(what is finished before each task, what once each awaited event has fired)"""
    indptr, producer = table.producers()
    is_conservative = conservative_events(table)
    tasks, events = {}, {}
    for wave in waves(table):
        for task in wave.tolist():
            tasks[task] = set()
            for event in table.waits_of(task).tolist():
                if event not in events:
                    behind = [tasks[p] | {p} for p in producer[indptr[event]:indptr[event + 1]]]
                    join = set.intersection if is_conservative[event] else set.union
                    events[event] = join(*behind) if behind else set()
                tasks[task] |= events[event]
    return tasks, events


def check(table):
    order = ancestors(table)
    tasks, events = sets_of(table)
    everyone = np.arange(table.num_tasks)
    for task, expected in tasks.items():
        assert set(everyone[order.before(everyone, np.array(task))].tolist()) == expected
    for event in range(table.num_events):
        expected = events.get(event, set())  # nothing, where nobody waits
        for task in everyone.tolist():
            assert order.all_behind(np.array([task]), np.array([event])) == (task in expected)


@pytest.mark.parametrize("seed", range(40))
def test_ancestors_of_random_graphs(seed):
    made = random_graph(seed)
    for bindings in made.bindings:
        check(instantiate(derive_events(made.graph), bindings))


@pytest.mark.parametrize("seed", range(12))
def test_ancestors_behind_data_dependent_edges(seed):
    made = dispatch_graph(seed)
    graph = derive_events(made.graph)
    bindings = {name: 9 for name in graph.symbols()}
    check(instantiate(conservative(graph), bindings))
    check(instantiate(graph, bindings, made.runtime(0)))


def test_overlapping_boxes_are_found_whatever_their_places():
    rng = np.random.default_rng(0)
    for _ in range(500):
        rank, (a, b) = rng.integers(0, 4), rng.integers(0, 9, 2)
        low_a, low_b = rng.integers(0, 9, (a, rank)), rng.integers(0, 9, (b, rank))
        # also empty boxes, which overlap with none
        high_a, high_b = (low + rng.integers(0, 4, low.shape) for low in (low_a, low_b))
        expected = (np.maximum(low_a[:, None], low_b) < np.minimum(high_a[:, None], high_b)).all(2)
        found = zip(*(pairs.tolist() for pairs in _overlap(low_a, high_a, low_b, high_b)),
                    strict=True)
        assert sorted(found) == [(i, j) for i, j in np.argwhere(expected).tolist()]
