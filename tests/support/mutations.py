"""Damage to valid graphs, tables and schedules, and whether it does harm, judged independently.

Each mutation takes a value and a seeded generator and returns a damaged copy, or None where there
is nothing of the kind to damage.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from program_order import Program, ordered_by_events

from event_tensor.errors import EventTensorError
from event_tensor.graph import Graph
from event_tensor.symbols import Constant
from event_tensor.task_table import Runtime, TaskTable
from event_tensor.tensors import EventTensor
from event_tensor.verify import verify_table
from scheduling.schedule import Schedule
from scheduling.verify_schedule import verify_schedule


def _without(values: np.ndarray, position: int) -> np.ndarray:
    return np.delete(values, position)


def _with(values: np.ndarray, position: int, value: int) -> np.ndarray:
    return np.insert(values, position, value)


def drop_wait(table: TaskTable, rng: random.Random) -> TaskTable | None:
    if not len(table.wait_event):
        return None
    k = rng.randrange(len(table.wait_event))
    return table.with_waits(_without(table.wait_task, k), _without(table.wait_event, k))


def add_wait(table: TaskTable, rng: random.Random) -> TaskTable | None:
    """Any task waits for any event: often a circle, sometimes merely one wait too many."""
    if not len(table.wait_event):
        return None
    task, event = rng.randrange(table.num_tasks), rng.choice(table.notify_event.tolist())
    at = int(table.wait_indptr[task])
    return table.with_waits(_with(table.wait_task, at, task), _with(table.wait_event, at, event))


def move_wait(table: TaskTable, rng: random.Random) -> TaskTable | None:
    """A wait for another event than the one that was meant."""
    if not len(table.wait_event):
        return None
    event = table.wait_event.copy()
    event[rng.randrange(len(event))] = rng.choice(table.notify_event.tolist())
    return table.with_waits(table.wait_task, event)


def drop_notify(table: TaskTable, rng: random.Random) -> TaskTable | None:
    """The count follows, so the event fires without this task."""
    if not len(table.notify_event):
        return None
    k = rng.randrange(len(table.notify_event))
    return table.with_notifies(_without(table.notify_task, k), _without(table.notify_event, k))


def drop_counted_notify(table: TaskTable, rng: random.Random) -> TaskTable | None:
    """The count stays, so the event never fires."""
    damaged = drop_notify(table, rng)
    return None if damaged is None else replace(damaged, event_count=table.event_count)


def double_notify(table: TaskTable, rng: random.Random) -> TaskTable | None:
    """A task arrives twice where the count expects it once: the event fires early."""
    if not len(table.notify_event):
        return None
    k = rng.randrange(len(table.notify_event))
    twice = table.with_notifies(_with(table.notify_task, k, table.notify_task[k]),
                                _with(table.notify_event, k, table.notify_event[k]))
    return replace(twice, event_count=table.event_count)


def wrong_count(table: TaskTable, rng: random.Random) -> TaskTable | None:
    awaited = np.unique(table.wait_event)
    if not len(awaited):
        return None
    count = table.event_count.copy()
    count[rng.choice(awaited.tolist())] += rng.choice((-1, 1, 5))
    return replace(table, event_count=count)


WEAKER_OR_OTHER_EVENTS = (drop_wait, add_wait, move_wait, drop_notify)
WRONG_COUNTS = (drop_counted_notify, double_notify, wrong_count)


def declare_counts(graph: Graph, table: TaskTable) -> Graph | None:
    """The graph with the counts of `table` written down, for events whose counts are all equal."""
    declared: dict[EventTensor, EventTensor] = {}
    for event, begin in table.event_begin.items():
        size = int(np.prod(table.event_shape[event], dtype=np.int64))
        counts = set(table.event_count[begin:begin + size].tolist())
        if len(counts) == 1:
            declared[event] = EventTensor(event.shape, counts.pop(), event.name)
    if not declared:
        return None
    return Graph(graph.name, [
        replace(call, in_edges=tuple(replace(e, event=declared.get(e.event, e.event))
                                     for e in call.in_edges),
                out_edges=tuple(replace(e, event=declared.get(e.event, e.event))
                                for e in call.out_edges))
        for call in graph.calls])


def with_calls_replaced(graph: Graph, index: int, **changes) -> Graph:
    return Graph(graph.name, [replace(call, **changes) if call.index == index else call
                              for call in graph.calls])


def shrink_grid(graph: Graph, bindings: dict[str, int], rng: random.Random) -> Graph | None:
    """One call loses its last tile along one axis."""
    choices = [(call.index, axis) for call in graph.calls for axis in range(len(call.tile_num))
               if call.tile_num[axis].evaluate(bindings) >= 2]
    if not choices:
        return None
    index, axis = rng.choice(choices)
    grid = list(graph.calls[index].tile_num)
    grid[axis] = Constant(grid[axis].evaluate(bindings) - 1)
    return with_calls_replaced(graph, index, tile_num=tuple(grid))


def shrink_map(graph: Graph, rng: random.Random) -> Graph | None:
    """A producer's map loses what tells its events apart: all tiles notify the first."""
    choices = [(call.index, k, d) for call in graph.calls
               for k, edge in enumerate(call.out_edges) for d in range(len(edge.map.indices))]
    if not choices:
        return None
    index, k, d = rng.choice(choices)
    edges = list(graph.calls[index].out_edges)
    indices = list(edges[k].map.indices)
    indices[d] = indices[d] // 2
    edges[k] = replace(edges[k], map=replace(edges[k].map, indices=tuple(indices)))
    return with_calls_replaced(graph, index, out_edges=tuple(edges))


def table_is_harmless(table: TaskTable) -> bool:
    """Every event a task waits for fires, after all its notifies and not before; every task can
    run; every conflict is ordered."""
    arrivals = np.bincount(table.notify_event, minlength=table.num_events)
    if (arrivals != table.event_count)[table.wait_event].any():
        return False
    order = ordered_by_events(table)
    return not order.diagonal().any() and not len(Program(table).unordered(order))


def is_accepted(table: TaskTable) -> bool:
    try:
        verify_table(table)
    except EventTensorError:
        return False
    return True


# sample values of data-dependent edges


def change_choice(runtime: Runtime, name: str, rng: random.Random) -> Runtime:
    """One entry of the tensor becomes another number of its range."""
    values = np.array(runtime[name])
    at = rng.randrange(values.size)
    others = sorted(set(range(-1, int(values.max()) + 2)) - {int(values.flat[at])})
    values.flat[at] = rng.choice(others)
    return {**runtime, name: values}


# schedules


def swap_tasks(schedule: Schedule, rng: random.Random) -> Schedule | None:
    workers = [w for w, order in enumerate(schedule.orders) if len(order) > 1]
    if not workers:
        return None
    w = rng.choice(workers)
    order = schedule.orders[w].copy()
    a, b = rng.sample(range(len(order)), 2)
    order[[a, b]] = order[[b, a]]
    return _with_order(schedule, w, order)


def move_task(schedule: Schedule, rng: random.Random) -> Schedule | None:
    """A task goes to another place on another worker."""
    workers = [w for w, order in enumerate(schedule.orders) if len(order)]
    if len(schedule.orders) < 2 or not workers:
        return None
    source = rng.choice(workers)
    target = rng.choice([w for w in range(len(schedule.orders)) if w != source])
    k = rng.randrange(len(schedule.orders[source]))
    task = schedule.orders[source][k]
    moved = _with_order(schedule, source, _without(schedule.orders[source], k))
    at = rng.randint(0, len(moved.orders[target]))
    return _with_order(moved, target, _with(moved.orders[target], at, task))


def duplicate_task(schedule: Schedule, rng: random.Random) -> Schedule | None:
    if not schedule.table.num_tasks:
        return None
    if len(schedule.queued) and rng.random() < 0.5:
        again = np.append(schedule.queued, rng.randrange(schedule.table.num_tasks))
        return replace(schedule, queued=again, queue_capacity=2 * schedule.queue_capacity)
    w = rng.randrange(len(schedule.orders))
    at = rng.randint(0, len(schedule.orders[w]))
    task = rng.randrange(schedule.table.num_tasks)
    return _with_order(schedule, w, _with(schedule.orders[w], at, task))


def lose_task(schedule: Schedule, rng: random.Random) -> Schedule | None:
    workers = [w for w, order in enumerate(schedule.orders) if len(order)]
    if len(schedule.queued) and (not workers or rng.random() < 0.5):
        k = rng.randrange(len(schedule.queued))
        return replace(schedule, queued=_without(schedule.queued, k))
    if not workers:
        return None
    w = rng.choice(workers)
    order = schedule.orders[w]
    return _with_order(schedule, w, _without(order, rng.randrange(len(order))))


def _with_order(schedule: Schedule, worker: int, order: np.ndarray) -> Schedule:
    orders = list(schedule.orders)
    orders[worker] = order
    return replace(schedule, orders=tuple(orders))


def shrink_queue(schedule: Schedule, rng: random.Random) -> Schedule | None:
    """A queue that a step may overflow, or one that tickets cannot wrap around."""
    if not len(schedule.queued):
        return None
    return replace(schedule, queue_capacity=rng.choice(
        [schedule.queue_capacity // 2, 0, len(schedule.queued) - 1, 3 * schedule.queue_capacity]))


ORDERS = (swap_tasks, move_task)
PLACEMENTS = (duplicate_task, lose_task)


def schedule_is_harmless(schedule: Schedule) -> bool:
    """Counts are met, no worker blocks for ever, and whatever the proved table makes a task wait
    for has ended when that task starts."""
    table, source = schedule.table, schedule.source
    arrivals = np.bincount(table.notify_event, minlength=table.num_events)
    if (arrivals != table.event_count)[table.wait_event].any():
        return False
    order = ordered_by_events(table, schedule.orders)
    if order.diagonal().any():
        return False
    producer_indptr, producer = source.producers()
    return all(order[p, t] for t, e in zip(source.wait_task, source.wait_event, strict=True)
               for p in producer[producer_indptr[e]:producer_indptr[e + 1]])


def is_accepted_schedule(schedule: Schedule) -> bool:
    try:
        verify_schedule(schedule)
    except EventTensorError:
        return False
    return True
