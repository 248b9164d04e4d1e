"""Workers that sleep are woken: every order of a handshake's steps, and launches that sleep always.

The steps are those of persistent_runtime/cpu/worker/sleeping.py, in one order (seq_cst).
"""

from __future__ import annotations

import threading

import pytest
from dispatch_graphs import dispatch_graph, run_and_check

from persistent_runtime.cpu import launch as cpu_launch
from persistent_runtime.megakernel import Megakernel

POLICIES = ("static", "hybrid", "dynamic", "dynamic_early", "hybrid_early")
FOREVER_NS = 10**18
HANGS_AFTER_S, SEEDS = 240, 15

# What a run is made of: the memory, and for each thread its next step; a step returns the next
# one. `asleep` is the system's: the sleeper lies in its call.


def sleeper(asks_first: bool):
    def fill(m):
        m["berth"] = m["wanted"]
        return flag

    def flag(m):
        m["flag"] = 1
        return announce

    def announce(m):
        m["sleepers"] += 1
        return ask if asks_first else lie_down

    def ask(m):
        return get_up if m["counter"] >= m["wanted"] else lie_down

    def lie_down(m):  # the system compares and sleeps in one step
        if m["flag"] != 1:
            return get_up
        m["asleep"] = True
        return wake_up

    def wake_up(m):
        return wake_up if m["asleep"] else get_up

    def get_up(m):
        m["sleepers"] -= 1
        return lower

    def lower(m):
        m["flag"] = 0
        return again

    def again(m):
        if m["counter"] >= m["wanted"]:
            return None
        return fill

    return fill


def notifier(add):
    """Adds to the counter, then wakes who waits for what it has come to."""
    def count(m):
        m["counter"] += add
        seen = m["counter"]

        def look(m):
            return match if m["sleepers"] else None

        def match(m):
            return swap if m["flag"] and seen >= m["berth"] else None

        return look

    def swap(m):
        if m["flag"] != 1:
            return None
        m["flag"] = 0
        return call

    def call(m):
        m["asleep"] = False
        return

    return count


def stuck_runs(threads, memory):
    """How many of all runs end with the sleeper asleep although all others are done."""
    stuck, seen = 0, set()
    pending = [(tuple(memory.items()), threads, (0,) * len(threads))]
    while pending:
        items, steps, _ = pending.pop()
        key = items, tuple(None if s is None else (s.__name__, _cells(s)) for s in steps)
        if key in seen:
            continue
        seen.add(key)
        ready = [k for k, step in enumerate(steps) if step is not None and not (
            step.__name__ == "wake_up" and dict(items)["asleep"])]
        stuck += not ready and any(step is not None for step in steps)
        for k in ready:
            m = dict(items)
            following = steps[k](m)
            pending.append((tuple(m.items()), (*steps[:k], following, *steps[k + 1:]), ()))
    return stuck


def _cells(step):
    return tuple(c.cell_contents for c in step.__closure__ or ()
                 if isinstance(c.cell_contents, int))


MEMORY = {"counter": 0, "wanted": 2, "berth": 0, "flag": 0, "sleepers": 0, "asleep": False}


@pytest.mark.parametrize("adds", ((2,), (1, 1), (1, 0, 1), (1, 1, 1)))
@pytest.mark.parametrize("others", (0, 1))
def test_every_order_of_the_steps_wakes_the_sleeper(adds, others):
    """With another one asleep, so that all look at its berth at any time, and without."""
    threads = (sleeper(asks_first=True), *map(notifier, adds))
    assert stuck_runs(threads, MEMORY | {"sleepers": others}) == 0


def test_a_sleeper_that_does_not_ask_once_more_is_found_out():
    assert stuck_runs((sleeper(asks_first=False), notifier(2)), MEMORY) > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_launches_that_sleep_at_every_wait_end(policy, monkeypatch):
    """Without a limit to a sleep: a wake-up that is lost is a launch that never ends."""
    monkeypatch.setattr(cpu_launch, "SLEEP_NS", FOREVER_NS)
    wrong = []

    def run() -> None:
        for seed in range(SEEDS):
            made = dispatch_graph(seed)
            kernel = Megakernel(made.graph, policy=policy, workers=(2, 3, 5)[seed % 3],
                                samples=made.samples)
            kernel.kernel.spin_limit = 1
            wrong.append(run_and_check(made, kernel, steps=12))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(HANGS_AFTER_S)
    assert not thread.is_alive(), f"launch {len(wrong)} does not end"
    assert len(wrong) == SEEDS and not any(wrong)
