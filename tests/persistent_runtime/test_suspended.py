"""Time in which nobody ran does not count as waiting, and a deadlock still ends.

This file with `launches` or `tokens DIRECTORY` is the program that is stopped.
"""

import os
import sys
from pathlib import Path

from paths import PYTHONPATH
from suspension import notify_by_hand, output_of_stopping, stop, stop_when_waiting

from persistent_runtime.launch.countdown import Countdown
from persistent_runtime.rows import layout

ROOT = Path(__file__).parents[2]
TIMEOUT_S, STOPPED_S = 2.5, 3.5
TOKENS, STOPS = 3000, (100, 700)


def stopping(*arguments):
    return output_of_stopping([sys.executable, __file__, *map(str, arguments)], STOPPED_S,
                              {**os.environ, "PYTHONPATH": PYTHONPATH})


def test_a_stopped_launch_goes_on_and_a_deadlock_ends():
    """Workers are stopped amid a wait, for longer than they may wait."""
    lines = stopping("launches").splitlines()
    assert lines[0] == "done"
    assert lines[1].startswith("deadlock: ")


def test_tokens_of_a_process_that_is_stopped(tiny_model):
    directory = tiny_model("llama", max_position_embeddings=8192)
    assert stopping("tokens", directory).splitlines()[-1] == f"{len(STOPS)} stops, equal: True"


class Clock:
    def __init__(self, monkeypatch):
        self.now_s = 0.0
        monkeypatch.setattr("persistent_runtime.launch.countdown.time.monotonic",
                            lambda: self.now_s)


def test_a_countdown_runs_down_where_nothing_intervenes(monkeypatch):
    clock = Clock(monkeypatch)
    countdown = Countdown(10.0)
    looks = 0
    while not countdown.is_over:
        clock.now_s += countdown.pause_s
        looks += 1
    assert 10.0 < clock.now_s < 11.0
    assert looks > layout.GAPS_PER_TIMEOUT


def test_a_countdown_counts_little_of_a_long_gap_and_ends_after_many(monkeypatch):
    clock = Clock(monkeypatch)
    countdown = Countdown(10.0)
    clock.now_s += 3600.0
    assert not countdown.is_over
    assert countdown.left_s == 10.0 - 10.0 / layout.GAPS_PER_TIMEOUT
    gaps = 1
    while not countdown.is_over:
        clock.now_s += 3600.0
        gaps += 1
    assert gaps == layout.GAPS_PER_TIMEOUT + 1


def run_launches():
    from test_schedules import launch_without_a_notify

    from event_tensor.errors import DeadlockError

    stuck = launch_without_a_notify(timeout_s=TIMEOUT_S)
    stop_when_waiting(stuck.launch, stuck.event_index)
    notify_by_hand(stuck.launch, stuck.event_index)
    stuck.launch.wait()
    print("done")
    stuck = launch_without_a_notify(timeout_s=TIMEOUT_S, policy="dynamic")
    stop_when_waiting(stuck.launch, stuck.event_index)
    try:
        stuck.launch.wait()
    except DeadlockError as error:
        print("deadlock:", str(error).replace("\n", " "))


def run_tokens(directory):
    from event_tensor import compile_decode_loop
    from persistent_runtime.megakernel import Megakernel

    decoder = compile_decode_loop(directory, backend="cpu", max_context=8192, workers=3)
    options = {"max_new_tokens": TOKENS, "ignore_eos": True}
    expected = decoder.generate([1, 2, 3], **options).output_ids
    Megakernel.launch.__kwdefaults__["timeout_s"] = TIMEOUT_S
    seen, stops = [], 0
    for token in decoder.stream([1, 2, 3], **options):
        seen.append(token.id)
        if len(seen) in STOPS:
            stops += 1
            stop()
    print(f"{stops} stops, equal: {seen == expected}")


if __name__ == "__main__":
    {"launches": run_launches, "tokens": run_tokens}[sys.argv[1]](*sys.argv[2:])
