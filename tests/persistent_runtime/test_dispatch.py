"""Random data-dependent graphs run by real threads: every task once, after its producers."""

import time

import pytest
from cases import usual_or
from dispatch_graphs import dispatch_graph, run_and_check

from event_tensor.errors import DeadlockError
from persistent_runtime.cpu.launch import CpuKernel
from persistent_runtime.megakernel import Megakernel
from persistent_runtime.rows import layout

WORKERS = (1, 2, 5)
SCHEDULES = ("static", "hybrid", "dynamic", "dynamic_early", "hybrid_early", "auto")


@pytest.mark.parametrize("policy", SCHEDULES)
def test_every_task_runs_once_after_its_producers(policy):
    """20 steps wrap the tickets around a queue that holds one step's tasks, and no more."""
    for seed in range(usual_or(20, 60)):
        made = dispatch_graph(seed)
        kernel = Megakernel(made.graph, policy=policy, workers=WORKERS[seed % 3],
                            samples=made.samples)
        assert not run_and_check(made, kernel, steps=20), f"seed {seed}"


@pytest.mark.parametrize("policy", ("static", "hybrid", "dynamic"))
def test_a_count_that_the_device_gets_wrong_is_an_error_and_not_a_hang(policy):
    """The values that were proved are not those that came: an expert waits for a row too many."""
    named = 0
    for seed in range(8):
        made = dispatch_graph(seed)
        kernel = Megakernel(made.graph, policy=policy, workers=2, samples=made.samples)
        kernel.schedule({"log_words": 3})
        name = next(name for name in made.choices if name.startswith("counts"))
        made.choices[name] = made.choices[name] + 1
        with pytest.raises(DeadlockError) as error:
            run_and_check(made, kernel, steps=1, timeout_s=0.4)
        named += name.replace("counts", "E_expert") in str(error.value)
    assert named > 5 or policy != "static"


@pytest.mark.parametrize("policy", ("hybrid", "dynamic", "dynamic_early"))
@pytest.mark.parametrize("late", range(3))
def test_a_worker_that_starts_late_holds_up_the_first_step(policy, late, monkeypatch):
    """The others can finish several tasks of the step before it is there."""
    call_worker = CpuKernel.call_worker

    def call_late(kernel, record, worker):
        time.sleep(0.05 * (worker == late))
        call_worker(kernel, record, worker)

    monkeypatch.setattr(CpuKernel, "call_worker", call_late)
    for seed in (0, 1, 5647):
        made = dispatch_graph(seed)
        kernel = Megakernel(made.graph, policy=policy, workers=3, samples=made.samples)
        assert not run_and_check(made, kernel, steps=6), f"seed {seed}"


def test_the_judgement_can_fail():
    """Tasks that are pushed at the first of their events are found out."""
    found = 0
    for seed in range(12):
        made = dispatch_graph(seed)
        kernel = Megakernel(made.graph, policy="dynamic", workers=2, samples=made.samples)
        joins = kernel.schedule({"log_words": 15}).edges.joins
        if (joins[:, layout.JOIN_COUNT] > 1).any():
            joins[joins[:, layout.JOIN_COUNT] > 1, layout.JOIN_COUNT] -= 1
            try:
                found += bool(run_and_check(made, kernel, steps=5, timeout_s=0.2))
            except DeadlockError:
                found += 1
    assert found > 2
