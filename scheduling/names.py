"""The one table of schedules that can be named: on the command line, in Python, in reports.

Light to import, because the command line reads it for its help texts; policies.py has the function
behind each name but `auto`, which choose.py answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from event_tensor.errors import UserError

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class ScheduleName:
    """does: completes "`name` …" in help texts. reason: for reports; {events} stands for the number
    of data-dependent event tensors. queues: whether it puts tasks into the ready queue. is_kind:
    whether reports call such a schedule by what it came to (`Schedule.kind`), not by this name.
    """

    does: str
    reason: str
    queues: bool = False
    is_kind: bool = True


SCHEDULES = {
    AUTO: ScheduleName(
        "takes what the cost model expects to end first for each part of the graph",
        "each part of the graph goes where the cost model expects it to end first"),
    "static": ScheduleName(
        "follows the critical path",
        "the ready task with the longest path before it goes to the worker that is free first"),
    "dynamic": ScheduleName(
        "pushes tasks to a ready queue when their events have fired",
        "every task is pushed when its events have fired, by the worker that fires the last; "
        "chosen by hand", queues=True),
    "dynamic_early": ScheduleName(
        "pushes them when their producers have been dispatched, and they wait where they run",
        "every task is pushed when its producers have been dispatched and waits for them where it "
        "runs; chosen by hand", queues=True),
    "hybrid": ScheduleName(
        "pushes only data-dependent ones",
        "{events} event tensors depend on data, so tasks that wait for them are pushed when they "
        "fire, and all others have their place", queues=True),
    "hybrid_early": ScheduleName(
        "pushes those early",
        "{events} event tensors depend on data, so tasks that wait for them are pushed, where that "
        "can be when their producers have been dispatched, and all others have their place",
        queues=True),
    "round_robin": ScheduleName(
        "gives task t to worker t mod workers",
        "task t goes to worker t mod workers; chosen by hand", is_kind=False),
    "unfused": ScheduleName(
        "puts a barrier after each operator",
        "a barrier after every operator, the baseline; chosen by hand", is_kind=False),
}


def check_name(name: str) -> str:
    """The name, if it is one of the table. Raises UserError."""
    if name not in SCHEDULES:
        raise UserError(f"schedule {name!r} is not available; use one of {', '.join(SCHEDULES)}")
    return name
