"""Every kind of damage is rejected by a named error exactly where it does harm.

Harm is judged by tests/support/program_order.py, which shares no code with the proofs.
"""

import random
from collections import Counter
from functools import cache

import moe_kernel as moe
import mutations as m
import numpy as np
import pytest
from program_order import Program
from random_graphs import queue_some_calls, random_graph

from event_tensor.derive import derive_events
from event_tensor.errors import CountError, CycleError, GraphError, RaceError, ScheduleError
from event_tensor.instantiate import instantiate
from event_tensor.verify import verify, verify_table
from event_tensor.waves import waves
from scheduling.merge import merge_events
from scheduling.policies import POLICIES
from scheduling.prune import prune_waits
from scheduling.target import generic_cpu
from scheduling.verify_schedule import verify_schedule

SEEDS = range(200)
SCHEDULE_ERRORS = (ScheduleError, CountError, CycleError)


# early pushes change no place
PLACEMENTS = ("static", "dynamic", "hybrid", "round_robin", "unfused")


@cache
def derived(seed):
    example = random_graph(seed)
    graph = derive_events(example.graph)
    return graph, example.bindings[-1]


@cache
def table_of(seed):
    """Tasks and events of a random graph, as a mutation gets them; it changes a copy."""
    return instantiate(*derived(seed))


@cache
def schedules(seed):
    """A proved schedule of a random graph, pruned every other time, on 1 to 4 workers."""
    graph, bindings = derived(seed)
    policy = POLICIES[PLACEMENTS[seed % len(PLACEMENTS)]]
    schedule = policy(verify(graph, bindings), generic_cpu(1 + seed % 4))
    if schedule.policy == "hybrid":  # nothing here depends on data
        schedule = queue_some_calls(schedule, random.Random(seed))
    return merge_events(prune_waits(schedule)) if seed % 2 else schedule


@pytest.mark.parametrize("mutate", m.WEAKER_OR_OTHER_EVENTS, ids=lambda f: f.__name__)
def test_changed_events_are_rejected_where_they_harm(mutate):
    verdicts = Counter()
    for seed in SEEDS:
        rng = random.Random(seed)
        damaged = mutate(table_of(seed), rng)
        if damaged is None:
            continue
        harmless = m.table_is_harmless(damaged)
        verdicts[harmless] += 1
        if not harmless:
            with pytest.raises((RaceError, CycleError, GraphError)):
                verify_table(damaged)
        elif (damaged.event_count[damaged.wait_event] == 0).any():
            # a wait that nobody answers is refused even where another wait makes up for it
            with pytest.raises(GraphError, match="which no task notifies"):
                verify_table(damaged)
        else:
            verify_table(damaged)
            Program(damaged).replay(seed)
    assert verdicts[False] > 40  # the mutation does bite


@pytest.mark.parametrize("mutate", m.WRONG_COUNTS, ids=lambda f: f.__name__)
def test_counts_that_are_not_met_are_rejected(mutate):
    rejected = 0
    for seed in SEEDS:
        damaged = mutate(table_of(seed), random.Random(seed))
        if damaged is None:
            continue
        if m.table_is_harmless(damaged):  # nobody waits for that event
            verify_table(damaged)
            continue
        with pytest.raises(CountError):
            verify_table(damaged)
        rejected += 1
    assert rejected > 150


def test_a_lost_tile_breaks_declared_counts():
    """With the counts written down, a smaller grid is found; inferred, it is another program."""
    verdicts = Counter()
    for seed in SEEDS:
        graph, bindings = derived(seed)
        table = instantiate(graph, bindings)
        counted = m.declare_counts(graph, table)
        shrunk = m.shrink_grid(counted, bindings, random.Random(seed)) if counted else None
        if shrunk is None:
            continue
        try:
            smaller = verify(shrunk, bindings)
        except (CountError, GraphError) as error:
            verdicts[type(error).__name__] += 1
        else:  # the lost tile notified nothing that is counted
            assert m.table_is_harmless(smaller)
            verdicts["harmless"] += 1
    assert verdicts["CountError"] > 40


def test_shrunk_maps_are_rejected_where_they_harm():
    verdicts = Counter()
    for seed in SEEDS:
        graph, bindings = derived(seed)
        shrunk = m.shrink_map(graph, random.Random(seed))
        if shrunk is None:
            continue
        try:
            table = verify(shrunk, bindings)
        except (GraphError, RaceError) as error:
            verdicts[type(error).__name__] += 1
            if isinstance(error, RaceError):
                assert not m.table_is_harmless(instantiate(shrunk, bindings))
        else:
            assert m.table_is_harmless(table)
            verdicts["harmless"] += 1
    assert verdicts["GraphError"] + verdicts["RaceError"] > 40


def test_declared_counts_that_contradict_the_edges():
    for seed in range(60):
        graph, bindings = derived(seed)
        counted = m.declare_counts(graph, instantiate(graph, bindings))
        if counted is None:
            continue
        verify(counted, bindings)
        wrong = m.declare_counts(graph, m.replace(
            instantiate(graph, bindings), event_count=instantiate(graph, bindings).event_count + 1))
        with pytest.raises(CountError, match="would never be reached; leave wait_count out"):
            verify(wrong, bindings)


@pytest.mark.parametrize("name", ("ids", "place", "counts", "indptr", "tile_rows"))
def test_changed_choices_are_rejected_where_they_harm(name):
    """Of a mixture of experts: whom a row notifies, where it goes, counts, and released tiles."""
    graph, verdicts = derive_events(moe.moe_graph(1)), Counter()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        bindings = {"n": int(rng.integers(1, 7)), "k": int(rng.integers(1, 4)), "steps": 1}
        ids = [rng.choice(moe.EXPERTS, bindings["k"], replace=False)
               for _ in range(bindings["n"])]
        runtime = moe.sample([np.array(ids)])
        verify(graph, bindings, runtime)
        damaged = m.change_choice(runtime, f"{name}0", random.Random(seed))
        try:
            table = verify(graph, bindings, damaged)
        except (CountError, GraphError, RaceError) as error:
            verdicts[type(error).__name__] += 1
        else:
            assert m.table_is_harmless(table), f"seed {seed}"
            verdicts["harmless"] += 1
    assert verdicts["harmless"] < 25


@pytest.mark.parametrize("mutate", m.ORDERS, ids=lambda f: f.__name__)
def test_changed_orders_are_rejected_where_they_harm(mutate):
    verdicts = Counter()
    for seed in SEEDS:
        damaged = mutate(schedules(seed), random.Random(seed))
        if damaged is None:
            continue
        harmless = m.schedule_is_harmless(damaged)
        verdicts[harmless] += 1
        if harmless:
            verify_schedule(damaged)
            Program(damaged.source).replay(seed, damaged.orders, table=damaged.table,
                                           queued=damaged.queued)
        else:
            with pytest.raises(ScheduleError):
                verify_schedule(damaged)
    assert verdicts[False] > 50 and verdicts[True] > 20


@pytest.mark.parametrize("mutate", m.PLACEMENTS, ids=lambda f: f.__name__)
def test_lost_and_repeated_tasks_are_rejected(mutate):
    rejected = 0
    for seed in SEEDS:
        damaged = mutate(schedules(seed), random.Random(seed))
        if damaged is not None:
            with pytest.raises(ScheduleError, match="place every task once"):
                verify_schedule(damaged)
            rejected += 1
    assert rejected > 180


@pytest.mark.parametrize("mutate", (*m.WEAKER_OR_OTHER_EVENTS, *m.WRONG_COUNTS),
                         ids=lambda f: f.__name__)
def test_changed_events_of_a_schedule_are_rejected_where_they_harm(mutate):
    verdicts = Counter()
    for seed in SEEDS:
        schedule = schedules(seed)
        table = mutate(schedule.table, random.Random(seed))
        if table is None:
            continue
        damaged = m.replace(schedule, table=table)
        harmless = m.schedule_is_harmless(damaged)
        verdicts[harmless] += 1
        if harmless:
            verify_schedule(damaged)
            Program(damaged.source).replay(seed, damaged.orders, table=damaged.table,
                                           queued=damaged.queued)
        else:
            with pytest.raises(SCHEDULE_ERRORS):
                verify_schedule(damaged)
    assert verdicts[False] > 30


def test_queues_too_small_are_rejected():
    rejected = 0
    for seed in SEEDS:
        damaged = m.shrink_queue(schedules(seed), random.Random(seed))
        if damaged is not None:
            with pytest.raises(ScheduleError, match="give it a power of two that holds them all"):
                verify_schedule(damaged)
            rejected += 1
    assert rejected > 30


def test_every_wait_that_pruning_leaves_is_needed():
    """Without any one of them the schedule breaks: in 200 random schedules, wait by wait."""
    left = 0
    for seed in range(200):
        schedule = prune_waits(schedules(seed))
        if len(schedule.queued):  # clocks do not count queued tasks: some waits stay to be safe
            continue
        table = schedule.table
        for k in range(len(table.wait_event)):
            fewer = m.replace(schedule, table=table.with_waits(
                m._without(table.wait_task, k), m._without(table.wait_event, k)))
            left += 1
            with pytest.raises(ScheduleError, match="keep that wait"):
                verify_schedule(fewer)
    assert left > 300


def test_counts_out_of_reach_are_named_even_without_a_proof():
    """Policies may be handed a table that nobody has proved."""
    named = 0
    for seed in SEEDS:
        damaged = m.wrong_count(table_of(seed), random.Random(seed))
        try:
            if damaged is not None:
                waves(damaged)
        except CycleError as error:
            named += "correct its wait count" in str(error)
    assert named > 100
