"""Every schedule has one name, with a text, a policy, and a kind that it comes to."""

import pytest
from random_graphs import random_graph

from event_tensor.derive import derive_events
from event_tensor.errors import UserError
from scheduling.names import AUTO, SCHEDULES, check_name
from scheduling.pipeline import build_schedule
from scheduling.policies import POLICIES
from scheduling.target import generic_cpu


def test_there_is_a_policy_for_every_name_but_auto():
    assert {AUTO, *POLICIES} == set(SCHEDULES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_knows_its_name(name):
    example = random_graph(3)
    schedule = build_schedule(derive_events(example.graph), example.bindings[-1], name,
                              generic_cpu(2))
    assert schedule.policy == name
    if name in ("static", "dynamic", "dynamic_early", "round_robin", "unfused"):
        assert schedule.name == name
    elif name != AUTO:  # nothing in this graph depends on data
        assert schedule.name == "static"
    assert schedule.early == name.endswith("_early") or name == AUTO


def test_an_unknown_name_is_answered_with_all_names():
    with pytest.raises(UserError, match="'fastest' is not available; use one of auto, static"):
        check_name("fastest")
