"""The clock of start-up: disjoint spans that sum to the wall time."""

import time

import pytest

from frontend.phases import Phases, process_start_s


def seconds(phases, name):
    return {p["name"]: p["seconds"] for p in phases.record(phases.spans)["phases"]}.get(name, 0.0)


def test_a_phase_inside_another_interrupts_it():
    phases = Phases(begin_s=time.monotonic())
    with phases("outer"):
        time.sleep(0.01)
        with phases("inner"):
            time.sleep(0.02)
        time.sleep(0.01)
    assert [span.name for span in phases.spans] == ["outer", "inner", "outer"]
    assert all(a.end_s <= b.begin_s for a, b in zip(phases.spans, phases.spans[1:], strict=False))
    assert 0.02 <= seconds(phases, "outer") and 0.02 <= seconds(phases, "inner")
    record = phases.record(phases.spans)
    assert sum(p["seconds"] for p in record["phases"]) == pytest.approx(record["wall_s"], abs=1e-5)


def test_what_no_phase_covers_is_unattributed():
    phases = Phases(begin_s=time.monotonic())
    with phases("known"):
        pass
    time.sleep(0.03)
    assert seconds(phases, "unattributed") >= 0.03
    phases.fill("named after all")
    assert seconds(phases, "named after all") >= 0.03
    assert seconds(phases, "unattributed") < 0.03


def test_nothing_is_recorded_after_the_first_token():
    phases = Phases()
    phases.fill("before")
    time.sleep(0.01)
    phases.first_token(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
    spans, wall_s = list(phases.spans), phases.wall_s
    assert [span.name for span in spans] == ["before", "prefill", "first token"]
    with phases("later"):
        time.sleep(0.005)
    phases.first_token(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
    phases.fill("later")
    assert (phases.spans, phases.wall_s) == (spans, wall_s)
    assert seconds(phases, "unattributed") == pytest.approx(0, abs=1e-4)


def test_a_token_may_be_chosen_before_its_launch_returns():
    phases = Phases()
    now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    with phases("prepare launch"):
        time.sleep(0.005)
    phases.first_token(now_ns)
    assert [span.name for span in phases.spans] == ["prepare launch", "prefill", "first token"]
    assert seconds(phases, "prefill") == 0 and phases.wall_s >= 0.005


def test_a_phase_ends_with_its_exception():
    phases = Phases()
    with pytest.raises(ValueError), phases("broken"):
        raise ValueError
    with phases("next"):
        pass
    assert [span.name for span in phases.spans] == ["broken", "next"]


def test_the_process_began_before_now():
    age_s = time.monotonic() - process_start_s()
    assert time.process_time() - 0.05 <= age_s + 0.02 and age_s < 1e6
