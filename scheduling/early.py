"""Early pushes: a queued task is pushed when its producers have been dispatched, and waits for its
events where it runs (paper, section 11). So a worker fetches it while they still run.

Tickets are first in, first out: the producers of a popped task have all been popped before it, so
its wait ends.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from event_tensor.conservative import conditional_calls, data_dependent_events
from scheduling.schedule import Schedule


def early(schedule: Schedule, name: str) -> Schedule:
    """The same places, with early pushes, under this name."""
    return replace(schedule, early=True, policy=name)


def early_events(schedule: Schedule) -> npt.NDArray[np.bool_]:
    """[events of the schedule's table]: those that can push early. Their producers and consumers
    are all queued, their producers run in every step, and no tensor decides over their edges."""
    table = schedule.table
    is_queued = np.zeros(table.num_tasks, bool)
    is_queued[schedule.queued] = True
    is_due = is_queued & ~np.isin(table.call, sorted(conditional_calls(table.graph.original)))
    suits = table.event_count > 0
    suits[table.notify_event[~is_due[table.notify_task]]] = False
    suits[table.wait_event[~is_queued[table.wait_task]]] = False
    chosen = set(data_dependent_events(table.graph.original))
    for tensor, begin in table.event_begin.items():
        if tensor.stands_for is not None or tensor in chosen:
            suits[begin:begin + int(np.prod(table.event_shape[tensor], dtype=np.int64))] = False
    return suits
