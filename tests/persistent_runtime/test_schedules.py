"""Schedules of random graphs: proved, simulated, and run by the real CPU worker.

What runs is compared with program order: by an abstract memory under seeded interleavings, and by
the numbers that real threads leave behind.
"""

import gc
import itertools
import os
import random
import re
import signal
import time
from dataclasses import dataclass
from functools import cache

import mutations as m
import numpy as np
import pytest
from cases import usual_or
from conftest import HANG_S
from mix_kernel import DTYPES, executable, run_in_program_order, start_memory
from program_order import Program, ordered_by_events
from random_graphs import queue_some_calls, random_graph

from event_tensor.derive import derive_events
from event_tensor.errors import DeadlockError
from event_tensor.instantiate import instantiate
from event_tensor.verify import verify
from persistent_runtime.launch.launch import Launch
from persistent_runtime.launch.memory import Buffers
from persistent_runtime.megakernel import Megakernel
from persistent_runtime.rows.encode import encode_schedule
from persistent_runtime.rows.segment import Segment
from scheduling.merge import merge_events
from scheduling.names import SCHEDULES
from scheduling.pipeline import build_schedule
from scheduling.policies import POLICIES, remaining_path_us
from scheduling.prune import prune_waits
from scheduling.target import generic_cpu, task_costs_us
from scheduling.verify_schedule import verify_schedule

WORKERS = (1, 2, 5)


@cache
def proved_table(seed):
    example = random_graph(seed)
    return verify(derive_events(example.graph), example.bindings[seed % len(example.bindings)])


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_policies_keep_program_order(policy, workers):
    """Placed, pruned, merged, proved; then simulated with the waits that are left."""
    waits = pruned_waits = merged_waits = 0
    for seed in range(usual_or(20, 60)):
        table = proved_table(seed)
        placed = POLICIES[policy](table, generic_cpu(workers))
        verify_schedule(placed)
        pruned = verify_schedule(prune_waits(placed))
        merged = verify_schedule(merge_events(pruned))
        assert awaited_by_the_same(merged.table) == 0
        program = Program(table)
        for schedule in (pruned, merged):
            assert schedule.num_workers == workers and m.schedule_is_harmless(schedule)
            order = ordered_by_events(schedule.table, schedule.orders)
            assert not len(program.unordered(order))
            for interleaving in range(3):
                program.replay(interleaving, schedule.orders, table=schedule.table,
                               queued=schedule.queued)
        waits += len(placed.table.wait_event)
        pruned_waits += len(pruned.table.wait_event)
        merged_waits += len(merged.table.wait_event)
    assert merged_waits <= pruned_waits
    if SCHEDULES[policy].queues:
        assert pruned_waits <= waits
    else:
        assert pruned_waits < waits
        assert pruned_waits == 0 or workers > 1  # one worker needs no events at all


def test_an_event_that_counts_for_several_is_called_by_all_their_names():
    several = 0
    for seed in range(40):
        example = random_graph(seed)
        table = verify(derive_events(example.graph), example.bindings[-1])
        pruned = prune_waits(POLICIES["round_robin"](table, generic_cpu(5)))
        merged = merge_events(pruned).table
        for event, others in merged.merged.items():
            names = merged.event_name(event).split(" + ")
            assert names[:2] == [table.event_name(e) for e in (event, others[0])]
            producers = sum((pruned.table.notify_event == e).sum() for e in (event, *others))
            assert merged.event_count[event] <= producers
            several += 1
    assert several


def awaited_by_the_same(table):
    """How many events have the same waiting tasks as one before."""
    indptr, task = table.consumers()
    waiting = [tuple(sorted(task[a:b])) for a, b in itertools.pairwise(indptr) if b > a]
    return len(waiting) - len(set(waiting))


def test_pruning_again_finds_nothing():
    for seed in range(40):
        example = random_graph(seed)
        schedule = build_schedule(derive_events(example.graph), example.bindings[-1],
                                  "static", generic_cpu(3))
        again = prune_waits(schedule)
        np.testing.assert_array_equal(again.table.wait_event, schedule.table.wait_event)
        np.testing.assert_array_equal(again.table.notify_event, schedule.table.notify_event)


def test_remaining_path_is_the_longest_chain():
    """Against a plain recursion over the ordered pairs of tasks."""
    for seed in range(30):
        example = random_graph(seed)
        table = verify(derive_events(example.graph), example.bindings[-1])
        costs = np.random.default_rng(seed).uniform(1, 9, table.num_tasks)
        direct = np.zeros((table.num_tasks, table.num_tasks), bool)
        indptr, producer = table.producers()
        for task, event in zip(table.wait_task, table.wait_event, strict=True):
            direct[producer[indptr[event]:indptr[event + 1]], task] = True
        longest = costs.copy()
        for task in reversed(range(table.num_tasks)):  # program order is an order of the events
            after = longest[direct[task]]
            longest[task] += after.max() + 0.5 if len(after) else 0
        np.testing.assert_allclose(remaining_path_us(table, costs, 0.5), longest)
        assert (task_costs_us(table, generic_cpu(2)) > 0).all()


@pytest.fixture
def some_calls_queued(monkeypatch):
    """A policy that puts random calls into rows and the others into the queue."""
    rng = random.Random(5)
    monkeypatch.setitem(POLICIES, "mixed", lambda table, target: queue_some_calls(
        POLICIES["static"](table, target), rng))
    monkeypatch.setitem(SCHEDULES, "mixed", SCHEDULES["hybrid"])


@pytest.mark.usefixtures("some_calls_queued")
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("policy", (*sorted(POLICIES), "mixed"))
def test_threads_leave_what_program_order_leaves(policy, workers):
    for seed in range(usual_or(8, 20)):
        example = random_graph(1000 + seed)
        dtype = DTYPES[seed % 2]
        kernel = Megakernel(executable(example.graph, dtype), workers=workers, policy=policy)
        for bindings in example.bindings:
            program = Program(instantiate(kernel.graph, bindings))
            expected = run_in_program_order(program, dtype)
            for _ in range(3):
                memory = start_memory(program, dtype)
                kernel.run(bindings, memory)
                for name, cells in expected.items():
                    np.testing.assert_array_equal(memory[name], cells, f"seed {seed}, {name}")
        assert kernel.compilations == 1


@pytest.mark.usefixtures("some_calls_queued")
@pytest.mark.parametrize("policy", ("static", "dynamic", "dynamic_early", "mixed"))
def test_many_steps_in_one_launch_repeat_the_program(policy):
    """Counters never go back: step s waits for count * (s + 1). Steps must not overlap."""
    for seed in (3, 8, 21):
        example = random_graph(seed)
        kernel = Megakernel(executable(example.graph, "int32"), workers=3, policy=policy)
        bindings = example.bindings[-1]
        program = Program(instantiate(kernel.graph, bindings))
        memory, buffers = start_memory(program, "int32"), Buffers()
        for spec in kernel.graph.tensors():
            buffers.bind(spec, memory[spec.name])
        kernel.launch([kernel.segment(bindings, buffers, steps=50)]).wait()
        once = start_memory(program, "int32")
        buffers = Buffers()
        for spec in kernel.graph.tensors():
            buffers.bind(spec, once[spec.name])
        for _ in range(50):
            kernel.launch([kernel.segment(bindings, buffers)]).wait()
        for name, cells in once.items():
            np.testing.assert_array_equal(memory[name], cells)


@dataclass
class StuckLaunch:
    """A real launch in which `task` waits in vain for `event`; it holds the memory as well."""

    launch: Launch
    buffers: Buffers
    task: str
    event: str
    event_index: int
    count: int


def launch_without_a_notify(seed=0, workers=2, timeout_s=0.3, policy="round_robin"):
    while True:
        example = random_graph(seed)
        bindings = example.bindings[-1]
        kernel = Megakernel(executable(example.graph, "int32"), workers=workers)
        schedule = build_schedule(kernel.graph, bindings, policy, kernel.target)
        if len(schedule.table.wait_event):
            break
        seed += 1
    table = schedule.table
    event = int(table.wait_event[0])
    position = int(np.flatnonzero(table.notify_event == event)[0])
    counts = table.event_count.copy()
    broken = m.replace(table.with_notifies(np.delete(table.notify_task, position),
                                           np.delete(table.notify_event, position)),
                       event_count=counts)
    encoded = encode_schedule(m.replace(schedule, table=broken), kernel.kernel.kinds,
                              kernel.parts[0].arguments)
    memory, buffers = start_memory(Program(instantiate(kernel.graph, bindings)), "int32"), Buffers()
    for spec in kernel.graph.tensors():
        buffers.bind(spec, memory[spec.name])
    arguments = kernel.parts[0].arguments.encode(bindings, buffers.addresses)
    segment = Segment(encoded, arguments, buffers, bindings)
    return StuckLaunch(kernel.launch([segment], timeout_s=timeout_s), buffers,
                       table.task_name(int(table.wait_task[0])), table.event_name(event),
                       event, int(counts[event]))


@pytest.mark.parametrize("workers", (2, 5))
def test_a_lost_notify_is_an_error_and_not_a_hang(workers):
    for seed in (0, 10, 20):
        stuck = launch_without_a_notify(seed, workers)
        with pytest.raises(DeadlockError) as error:
            stuck.launch.wait()
        assert (f"{stuck.task} waits on {stuck.event}, count {stuck.count - 1} of {stuck.count} "
                f"in step 1") in str(error.value)
        assert not stuck.launch.is_running


@pytest.mark.parametrize("workers", (1, 5))
def test_a_queued_task_that_is_never_pushed_is_an_error_and_not_a_hang(workers):
    for seed in (0, 10, 20):
        stuck = launch_without_a_notify(seed, workers, policy="dynamic")
        with pytest.raises(DeadlockError) as error:
            stuck.launch.wait()
        assert "waits for the others at the end of step 1" in str(error.value)
        call = stuck.task.partition("[")[0]
        ran = re.search(r"(\d+) of (\d+) queued tasks of (\w+) ran", str(error.value))
        assert ran and int(ran[1]) < int(ran[2])
        if stuck.count > 1:
            assert (f"queued tasks wait on {stuck.event}, count {stuck.count - 1} of "
                    f"{stuck.count}") in str(error.value)
        assert call in str(error.value) or stuck.count > 1
        assert not stuck.launch.is_running


@pytest.mark.parametrize("policy", ("round_robin", "dynamic"))
def test_abort_ends_a_stuck_launch_at_once(policy):
    stuck = launch_without_a_notify(timeout_s=30, policy=policy)
    time.sleep(0.05)
    assert stuck.launch.is_running
    stuck.launch.abort()
    assert not stuck.launch.is_running
    stuck.launch.check()  # asked to end: it raises if the timeout came first


@pytest.mark.parametrize("policy", ("round_robin", "dynamic"))
def test_ctrl_c_ends_a_stuck_launch(policy, monkeypatch):
    stuck = launch_without_a_notify(timeout_s=30, policy=policy)
    monkeypatch.setattr("persistent_runtime.launch.launch.time.sleep",
                        lambda seconds: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        stuck.launch.wait()
    assert not stuck.launch.is_running
    stuck.launch.check()


def test_a_launch_outlives_its_handle():
    """The workers' memory stays while they run, even when nobody holds the launch any more."""
    stuck = launch_without_a_notify(timeout_s=0.3)
    threads = stuck.launch._threads
    del stuck
    gc.collect()
    for thread in threads:
        thread.join(HANG_S)
    assert not any(thread.is_alive() for thread in threads)
