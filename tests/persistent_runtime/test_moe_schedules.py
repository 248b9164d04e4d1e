"""Data-dependent dispatch by the real CPU worker: exact numbers, and exactly the routed tiles."""

import moe_kernel as moe
import numpy as np
import pytest
from task_counts import task_counts

from persistent_runtime.launch.memory import Buffers
from persistent_runtime.megakernel import Megakernel
from scheduling.names import SCHEDULES as SCHEDULE_NAMES

LAYERS = 2
SCHEDULES = ("static", "round_robin", "unfused", "hybrid", "dynamic", "dynamic_early",
             "hybrid_early")


def random_routes(rng, steps, tokens, top_k):
    return np.array([[rng.choice(moe.EXPERTS, top_k, replace=False) for _ in range(tokens)]
                     for _ in range(steps)], np.int32)


def routings():
    """Name → routes [steps, tokens, top_k]."""
    rng = np.random.default_rng(3)
    result = {
        "one-expert-gets-all": np.full((3, 7, 1), 4),
        "one-token": random_routes(rng, 4, 1, 2),
        "all-used": np.arange(moe.EXPERTS).reshape(1, -1, 1).repeat(2, 0),
        "empty-experts": np.where(random_routes(rng, 6, 5, 1) < 2, 0, 3),
        "random": random_routes(rng, 9, 6, 3)}
    return {name: routes.astype(np.int32) for name, routes in result.items()}


def samples(bindings):
    rng = np.random.default_rng(0)
    routes = random_routes(rng, 2 * LAYERS, bindings["n"], bindings["k"])
    same = np.broadcast_to(np.arange(bindings["k"]), routes[0].shape)
    return [moe.sample(routes[:LAYERS]), moe.sample(routes[LAYERS:]), moe.sample([same] * LAYERS)]


@pytest.fixture(scope="module")
def kernels():
    """`kernels(policy, workers)`: one compilation serves every shape and routing."""
    made = {}

    def make(policy, workers):
        key = policy, workers
        if key not in made:
            made[key] = Megakernel(moe.moe_graph(LAYERS), policy=policy, workers=workers,
                                   samples=samples)
        return made[key]

    return make


def launch(kernel, routes, steps):
    """(x after the steps, the launch) for the routes of this launch, over fresh memory."""
    bindings = {"n": routes.shape[1], "k": routes.shape[2], "steps": len(routes)}
    buffers = Buffers()
    for spec in kernel.graph.tensors():
        buffers.allocate(spec, tuple(int(d.evaluate(bindings)) for d in spec.shape))
    tensors = {spec.name: spec for spec in kernel.graph.tensors()}
    buffers.array(tensors["routes"])[:] = routes
    x = buffers.array(tensors["x"])
    x[:] = np.arange(x.size).reshape(x.shape) * 7919 % 1000
    before = x.copy()
    running = kernel.launch([kernel.segment(bindings, buffers, steps=steps)])
    running.wait()
    return before, x, running


@pytest.mark.parametrize("workers", (1, 2, 5))
@pytest.mark.parametrize("policy", SCHEDULES)
@pytest.mark.parametrize("name", routings())
def test_numbers_and_tiles(kernels, name, policy, workers):
    routes, steps = routings()[name], 12
    kernel = kernels(policy, workers)
    for _ in range(3):
        before, after, running = launch(kernel, routes, steps)
        np.testing.assert_array_equal(
            after, moe.run_reference(before, routes, steps, LAYERS))
        counts, = task_counts(running)
        for layer in range(LAYERS):
            used = sum(int(moe.route(routes[(s + layer) % len(routes)])["indptr"][-1])
                       for s in range(steps))
            check_counts(counts, layer, policy, used, steps, routes)


def check_counts(counts, layer, policy, used_tiles, steps, routes):
    """Two column tiles for each tile of rows in use; no more, no fewer."""
    suffix = f"_{layer}" if layer else ""
    up, down = counts[f"moe_up{suffix}"], counts[f"moe_down{suffix}"]
    bindings = {"n": routes.shape[1], "k": routes.shape[2]}
    all_tiles = int(moe.tiles.evaluate(bindings)) * steps
    if SCHEDULE_NAMES[policy].queues:
        assert up == down == (2 * used_tiles, 0)
        assert counts[f"moe_group{suffix}"] == (routes[0].size * steps, 0)
        assert counts[f"moe_merge{suffix}"] == (routes.shape[1] * steps, 0)
        assert counts[f"moe_pick{suffix}"][0] == (steps if policy.startswith("dynamic") else 0)
    elif policy == "unfused":
        assert up == (0, 0)
    else:
        assert up == (0, 2 * (all_tiles - used_tiles))
