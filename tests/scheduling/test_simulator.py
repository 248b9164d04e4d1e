"""The makespan estimate: by hand, and within bounds that hold for every schedule."""

from dataclasses import replace

import numpy as np
import pytest
from random_graphs import random_graph

from event_tensor.derive import derive_events
from event_tensor.device_function import WHOLE, Cost, DeviceFunction, Tile, reads, writes
from event_tensor.errors import ScheduleError
from event_tensor.graph import Graph
from event_tensor.symbols import Constant
from event_tensor.tensors import TensorSpec
from event_tensor.verify import verify
from scheduling.early import early, early_events
from scheduling.policies import POLICIES, remaining_path_us
from scheduling.prune import prune_waits
from scheduling.schedule import Schedule
from scheduling.simulator import estimate_makespan
from scheduling.target import Target, generic_cpu, task_costs_us

# 1 GB/s per worker, so 1000 bytes last 1 us; a dependency 0.5 us, a dispatch 0.25 us
TARGET = Target("hand", 2, 2.0, 1e9, dependency_us=0.5, task_us=0.25, pop_us=1.0)


def two_halves_and_a_sum():
    """half[0] and half[1] of 2.25 us each, then sum[0] of 1.25 us."""
    x, y = TensorSpec("x", (2,)), TensorSpec("y", (1,))
    half = DeviceFunction("half", ("i",), (writes("x", Tile("i")),), cost=Cost(Constant(2000)))
    total = DeviceFunction("sum", ("i",), (reads("x", WHOLE), writes("y", Tile("i"))),
                           cost=Cost(Constant(1000)))
    graph = Graph("hand")
    graph.call_device(half, args=[x])
    graph.call_device(total, args=[x, y])
    return verify(derive_events(graph), {})


def chain():
    """half[0] of 2.25 us, then sum[0] of 1.25 us."""
    x, y = TensorSpec("x", (1,)), TensorSpec("y", (1,))
    half = DeviceFunction("half", ("i",), (writes("x", Tile("i")),), cost=Cost(Constant(2000)))
    total = DeviceFunction("sum", ("i",), (reads("x", WHOLE), writes("y", Tile("i"))),
                           cost=Cost(Constant(1000)))
    graph = Graph("chain")
    graph.call_device(half, args=[x])
    graph.call_device(total, args=[x, y])
    return verify(derive_events(graph), {})


def schedule(table, *orders):
    return Schedule(table, table, tuple(np.array(o, np.int64) for o in orders), "by hand")


def test_by_hand():
    table = two_halves_and_a_sum()
    apart = estimate_makespan(schedule(table, [0, 2], [1]), TARGET)
    assert apart.makespan_us == 2.25 + 0.5 + 1.25
    assert apart.busy_us == (3.5, 2.25) and apart.wait_us == (0.5, 0.0)
    alone = estimate_makespan(schedule(table, [1, 0, 2], []), TARGET)
    assert alone.makespan_us == 5.75 and alone.wait_us == (0.0, 0.0)
    behind = estimate_makespan(schedule(table, [0, 1], [2]), TARGET)
    assert behind.makespan_us == 4.5 + 0.5 + 1.25 and behind.wait_us == (0.0, 5.0)
    assert apart.utilisation == (3.5 + 2.25) / (4.0 * 2)


def dispatches(placed):
    """Tasks that count themselves as dispatched, for the events that push early."""
    table = placed.table
    return len(np.unique(table.notify_task[early_events(placed)[table.notify_event]])
               ) if placed.early else 0


def test_a_task_that_is_pushed_early_has_been_popped_when_its_producer_ends():
    """The other worker pops while the producer runs, unless the task is pushed at its end."""
    table = chain()
    plain = Schedule(table, table, (np.zeros(0, np.int64),) * 2, "dynamic", np.arange(2), 2)
    pushed_early = early(plain, "dynamic_early")
    assert early_events(pushed_early).tolist() == [True]
    at_end = estimate_makespan(plain, TARGET)
    assert at_end.makespan_us == (1.0 + 2.25) + 1.0 + 1.25  # pop, half, pop, sum
    ahead = estimate_makespan(pushed_early, TARGET)
    # popped and told of in 2 us; the other worker's pop ends before the half does
    assert ahead.makespan_us == (2.0 + 2.25) + 0.5 + 1.25
    assert ahead.task_worker == (0, 1)


def test_an_event_notified_from_both_sides():
    """The own worker's notify counts at once, the other's after dependency_us."""
    table = two_halves_and_a_sum()
    slow_own = estimate_makespan(schedule(table, [1, 0, 2], []), TARGET)
    late_other = estimate_makespan(schedule(table, [0, 2], [1]), TARGET)
    assert slow_own.makespan_us > late_other.makespan_us


def test_pops_by_hand():
    """Both halves are popped at once, the sum when its event has come and a pop has passed."""
    table = two_halves_and_a_sum()
    queued = replace(schedule(table, [], []), queued=np.arange(3), queue_capacity=4)
    estimate = estimate_makespan(queued, TARGET)
    assert estimate.makespan_us == 1.0 + 2.25 + 1.0 + 1.25
    assert sum(estimate.busy_us) == 5.75
    served = estimate_makespan(replace(schedule(table, [0], [2]), queued=np.array([1]),
                                       queue_capacity=1), TARGET)
    assert served.makespan_us == 1.0 + 2.25 + 1.25  # by the worker that waits for the sum


def test_a_blocked_schedule_has_no_makespan():
    with pytest.raises(ScheduleError, match="would wait forever"):
        estimate_makespan(schedule(two_halves_and_a_sum(), [2, 0, 1]), TARGET)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_bounds(policy):
    for seed in range(60):
        example = random_graph(seed)
        table = verify(derive_events(example.graph), example.bindings[-1])
        target = generic_cpu(1)
        costs = task_costs_us(table, target)
        placed = POLICIES[policy](table, target)
        one = estimate_makespan(placed, target)
        pops = target.pop_us * (len(placed.queued) + dispatches(placed))
        assert one.makespan_us == pytest.approx(costs.sum() + pops)
        assert one.wait_us == pytest.approx((pops,))
        for workers in (2, 5):
            target = generic_cpu(workers)
            placed = POLICIES[policy](table, target)
            pruned = prune_waits(placed)
            estimate = estimate_makespan(pruned, target)
            path = remaining_path_us(placed.source, costs, 0.0).max()
            assert estimate.makespan_us >= max(path, costs.sum() / workers) - 1e-9
            # while the step lasts, some worker runs or some notify is on its way
            on_the_way = table.num_tasks * target.dependency_us
            assert estimate.makespan_us <= one.makespan_us + on_the_way + 1e-9
            assert sum(estimate.busy_us) == pytest.approx(costs.sum())
            for busy, wait in zip(estimate.busy_us, estimate.wait_us, strict=True):
                assert busy + wait <= estimate.makespan_us + 1e-9
            assert 0 < estimate.utilisation <= 1 + 1e-9
            unpruned = estimate_makespan(placed, target)
            assert estimate.makespan_us <= unpruned.makespan_us + 1e-9


def test_an_empty_table_takes_no_time():
    empty = verify(Graph("empty"), {})
    assert estimate_makespan(schedule(empty, [], []), TARGET).makespan_us == 0.0
    assert estimate_makespan(schedule(empty, []), TARGET).utilisation == 1.0
