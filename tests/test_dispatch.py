"""Random data-dependent graphs run by real threads: every task once, after its producers."""

import pytest
from dispatch_graphs import dispatch_graph, run_and_check

from persistent_runtime.megakernel import Megakernel

WORKERS = (1, 2, 5)
SCHEDULES = [("critical_path", False), ("hybrid", False), ("dynamic", False), ("dynamic", True)]


@pytest.mark.parametrize("policy, early_push", SCHEDULES)
def test_every_task_runs_once_after_its_producers(policy, early_push):
    """20 steps wrap the tickets around a queue that holds one step's tasks, and no more."""
    for seed in range(60):
        made = dispatch_graph(seed)
        kernel = Megakernel(made.graph, policy=policy, workers=WORKERS[seed % 3],
                            early_push=early_push, samples=made.samples)
        assert not run_and_check(made, kernel, steps=20), f"seed {seed}"
