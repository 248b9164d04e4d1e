"""The clock of start-up: disjoint spans that sum to the wall time."""

import subprocess
import sys
import time

import pytest
from conftest import HANG_S, command_environment

from frontend.decode import phases as phases_module
from frontend.decode.phases import Phases

BEGIN_S = 100.0


class Clock:
    """In the place of `time`: it goes on where someone sleeps."""

    def __init__(self):
        self.now_s = BEGIN_S

    def monotonic(self):
        return self.now_s

    def sleep(self, seconds):
        self.now_s += seconds

    @property
    def now_ns(self):
        return int(self.now_s * 1e9)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(phases_module, "time", clock)
    return clock


def seconds(phases):
    return {p["name"]: p["seconds"] for p in phases.record(phases.spans)["phases"]}


def test_a_phase_inside_another_interrupts_it(clock):
    phases = Phases(begin_s=BEGIN_S)
    with phases("outer"):
        clock.sleep(1.0)
        with phases("inner"):
            clock.sleep(2.0)
        clock.sleep(4.0)
    assert [span.name for span in phases.spans] == ["outer", "inner", "outer"]
    assert all(a.end_s <= b.begin_s for a, b in zip(phases.spans, phases.spans[1:], strict=False))
    assert seconds(phases) == {"outer": 5.0, "inner": 2.0, "unattributed": 0.0}
    assert phases.record(phases.spans)["wall_s"] == 7.0


def test_what_no_phase_covers_is_unattributed(clock):
    phases = Phases(begin_s=BEGIN_S)
    with phases("known"):
        pass
    clock.sleep(3.0)
    assert seconds(phases) == {"known": 0.0, "unattributed": 3.0}
    phases.fill("named after all")
    assert seconds(phases) == {"known": 0.0, "named after all": 3.0, "unattributed": 0.0}


def test_nothing_is_recorded_after_the_first_token(clock):
    phases = Phases(begin_s=BEGIN_S)
    clock.sleep(1.0)
    phases.fill("before")
    clock.sleep(2.0)
    chosen_ns = clock.now_ns
    clock.sleep(4.0)
    phases.first_token(chosen_ns)
    spans, wall_s = list(phases.spans), phases.wall_s
    with phases("later"):
        clock.sleep(8.0)
    phases.first_token(clock.now_ns)
    phases.fill("later")
    assert (phases.spans, phases.wall_s) == (spans, wall_s)
    assert seconds(phases) == {"before": 1.0, "prefill": 2.0, "first token": 4.0,
                               "unattributed": 0.0}


def test_a_token_may_be_chosen_before_its_launch_returns(clock):
    phases = Phases(begin_s=BEGIN_S)
    chosen_ns = clock.now_ns
    with phases("prepare launch"):
        clock.sleep(1.0)
    phases.first_token(chosen_ns)
    assert seconds(phases) == {"prepare launch": 1.0, "prefill": 0.0, "first token": 0.0,
                               "unattributed": 0.0}


def test_the_first_token_ends_the_last_phase():
    """By the real clock, which goes on between two looks at it."""
    phases = Phases()
    phases.first_token(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
    assert phases.spans[-1].end_s == phases.end_s


def test_time_is_booked_in_the_phase_in_which_it_passes(clock):
    phases = Phases(begin_s=BEGIN_S)
    with phases("slow"):
        clock.sleep(2.0)
    with phases("quick"):
        pass
    assert seconds(phases) == {"slow": 2.0, "quick": 0.0, "unattributed": 0.0}


def test_a_phase_ends_with_its_exception():
    phases = Phases()
    with pytest.raises(ValueError), phases("broken"):
        raise ValueError
    with phases("next"):
        pass
    assert [span.name for span in phases.spans] == ["broken", "next"]


def test_the_process_began_when_it_was_started():
    """To a hundredth of a second, and one more for what rounds."""
    code = "from frontend.decode.phases import process_start_s; print(process_start_s())"
    begin_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          timeout=HANG_S, env=command_environment())
    assert begin_s - 0.02 <= float(done.stdout) <= time.monotonic()
