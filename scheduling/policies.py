"""Placement policies: small functions from a task table to an order for every worker, or to the
ready queue.

A worker pops queued tasks whenever it waits, so the rows of a hybrid schedule and its queued tasks
share one set of workers. A call whose tasks look up at run time which event they wait for stays in
rows: no event could push them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Set
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from event_tensor.conservative import conditional_calls, data_dependent_events
from event_tensor.edges import Edge, IndexMap
from event_tensor.errors import ScheduleError
from event_tensor.graph import Graph
from event_tensor.instantiate import instantiate
from event_tensor.task_table import IntArray, TaskTable
from event_tensor.tensors import EventTensor
from event_tensor.waves import gather_ranges, waves
from scheduling.early import early
from scheduling.schedule import Schedule, queue_capacity
from scheduling.target import Target, task_costs_us

Policy = Callable[[TaskTable, Target], Schedule]


def round_robin(table: TaskTable, target: Target) -> Schedule:
    """Task t goes to worker t mod workers, in an order the events allow (the paper's policy)."""
    sequence = _topological(table)
    orders = tuple(sequence[worker::target.workers] for worker in range(target.workers))
    return Schedule(table, table, orders, "round_robin")


def critical_path(table: TaskTable, target: Target) -> Schedule:
    """List scheduling: the ready task with the longest remaining path goes to the worker that
    is free first; a worker that already holds the producers is preferred where that costs
    nothing."""
    cost = task_costs_us(table, target)
    priority = remaining_path_us(table, cost, target.dependency_us)
    consumer_indptr, consumer = (a.tolist() for a in table.consumers())
    notify_indptr, notify_event = table.notify_indptr.tolist(), table.notify_event.tolist()
    missing = table.event_count.tolist()
    pending = np.bincount(table.wait_task[table.event_count[table.wait_event] > 0],
                          minlength=table.num_tasks).tolist()
    costs, urgency = cost.tolist(), (-priority).tolist()
    ready_at = [0.0] * table.num_tasks
    event_at = [0.0] * table.num_events
    last_producer = [-1] * table.num_events
    holder = [-1] * table.num_tasks
    # (urgency, task) among tasks whose inputs exist by now; (time, task) among the others
    available = [(urgency[t], t) for t in range(table.num_tasks) if pending[t] == 0]
    heapq.heapify(available)
    upcoming: list[tuple[float, int]] = []
    idle = [(0.0, worker) for worker in range(target.workers)]
    orders: list[list[int]] = [[] for _ in range(target.workers)]
    placed = 0
    while placed < table.num_tasks:
        now, worker = heapq.heappop(idle)
        while upcoming and (upcoming[0][0] <= now or not available):
            at, task = heapq.heappop(upcoming)
            now = max(now, at)
            heapq.heappush(available, (urgency[task], task))
        _, task = heapq.heappop(available)
        worker = _prefer_holder(idle, worker, holder[task], now)
        orders[worker].append(task)
        placed += 1
        end = max(now, ready_at[task]) + costs[task]
        heapq.heappush(idle, (end, worker))
        for event in notify_event[notify_indptr[task]:notify_indptr[task + 1]]:
            missing[event] -= 1
            if end >= event_at[event]:
                event_at[event], last_producer[event] = end, worker
            if missing[event]:
                continue
            for follower in consumer[consumer_indptr[event]:consumer_indptr[event + 1]]:
                pending[follower] -= 1
                if event_at[event] >= ready_at[follower]:
                    ready_at[follower] = event_at[event]
                    holder[follower] = last_producer[event]
                if pending[follower] == 0:
                    heapq.heappush(upcoming, (ready_at[follower], follower))
    return Schedule(table, table, tuple(np.array(o, np.int64) for o in orders), "static")


def _prefer_holder(idle: list[tuple[float, int]], worker: int, holder: int, now: float) -> int:
    """The producers' worker, if it is free just as early; swaps the two in the idle heap."""
    if holder in (-1, worker):
        return worker
    for k, (at, other) in enumerate(idle[:8]):
        if other == holder and at <= now:
            idle[k] = (at, worker)
            return holder
    return worker


def remaining_path_us(table: TaskTable, cost_us: npt.NDArray[np.float64], dependency_us: float
                      ) -> npt.NDArray[np.float64]:
    """[tasks]: longest time from a task's start to the end of the step."""
    remaining = cost_us.copy()
    event_remaining = np.zeros(table.num_events)
    for wave in reversed(waves(table)):
        positions, lengths = gather_ranges(table.notify_indptr, wave)
        if len(positions):
            after = np.zeros(len(wave))
            owner = np.repeat(np.arange(len(wave)), lengths)
            np.maximum.at(after, owner, event_remaining[table.notify_event[positions]])
            remaining[wave] += after
        positions, lengths = gather_ranges(table.wait_indptr, wave)
        np.maximum.at(event_remaining, table.wait_event[positions],
                      np.repeat(remaining[wave] + dependency_us, lengths))
    return remaining


def unfused(table: TaskTable, target: Target) -> Schedule:
    """The same tiles with one global event between operators: the paper's ablation baseline.

    Operators that do not depend on each other share a stage, as kernels on two streams would.
    """
    return replace(round_robin(with_global_events(table), target), policy="unfused")


def with_global_events(table: TaskTable) -> TaskTable:
    """The table of a graph whose only events are one between consecutive stages of calls."""
    calls = table.graph.calls
    stage = _stages(table)
    events = [EventTensor((), name=f"E_stage_{s}") for s in range(max(stage, default=0) + 1)]
    graph = Graph(f"{table.graph.name}_unfused", [
        replace(call,
                in_edges=(Edge(events[stage[call.index] - 1], _to_scalar(call.function.axes)),)
                if stage[call.index] else (),
                out_edges=(Edge(events[stage[call.index]], _to_scalar(call.function.axes)),))
        for call in calls])
    return instantiate(graph, table.bindings, table.runtime)


def _to_scalar(axes: tuple[str, ...]) -> IndexMap:
    return IndexMap(axes, ())


def _stages(table: TaskTable) -> list[int]:
    """Longest chain of calls before each call, counting only calls that have tasks."""
    producers: dict[EventTensor, list[int]] = {}
    for call in table.graph.calls:
        for edge in call.out_edges:
            producers.setdefault(edge.event, []).append(call.index)
    stage = [0] * len(table.graph.calls)
    for call in table.graph.calls:
        if table.call_begin[call.index] == table.call_begin[call.index + 1]:
            continue
        earlier = [p for edge in call.in_edges for p in producers.get(edge.event, [])
                   if table.call_begin[p] < table.call_begin[p + 1]]
        stage[call.index] = max((stage[p] + 1 for p in earlier), default=0)
    return stage


def _topological(table: TaskTable) -> IntArray:
    """Program order where it already respects the events, else wave by wave."""
    producer_indptr, producer = table.producers()
    last = np.full(table.num_events, -1, np.int64)
    np.maximum.at(last, np.repeat(np.arange(table.num_events), np.diff(producer_indptr)), producer)
    if (last[table.wait_event] < table.wait_task).all():
        return np.arange(table.num_tasks)
    groups = waves(table)
    return np.concatenate(groups) if groups else np.zeros(0, np.int64)


def dynamic(table: TaskTable, target: Target) -> Schedule:
    """Every task is pushed to the ready queue when its events fire (paper, Algorithm 2)."""
    calls = {call.index for call in table.graph.calls} - looked_up(table.graph.original)
    return queue_calls(table, target, calls, "dynamic")


def hybrid(table: TaskTable, target: Target) -> Schedule:
    """Dense calls in rows by critical path; triggered and data-dependent calls are queued."""
    graph = table.graph.original
    return queue_calls(table, target, dispatched_calls(graph) - looked_up(graph), "hybrid")


def dispatched_calls(graph: Graph) -> frozenset[int]:
    """Calls of data-dependent dispatch: triggered, or with an edge that reads a tensor."""
    chosen = set(data_dependent_events(graph))
    return conditional_calls(graph) | {
        call.index for call in graph.calls
        if any(edge.event in chosen for edge in (*call.in_edges, *call.out_edges))}


def looked_up(graph: Graph) -> set[int]:
    """Calls whose tasks find in a tensor which event they wait for."""
    return {call.index for call in graph.calls
            if any(edge.is_data_dependent and not edge.is_trigger for edge in call.in_edges)}


def queue_calls(table: TaskTable, target: Target, calls: Set[int], policy: str) -> Schedule:
    """These calls go through the ready queue, the others into rows by critical path."""
    rows = conditional_calls(table.graph.original) - calls
    if rows:
        name = table.graph.calls[min(rows)].name
        raise ScheduleError(f"{name} waits for events that it looks up, and its tiles may not run; "
                            f"use the static schedule for this graph")
    is_queued = np.isin(table.call, sorted(calls))
    queued: IntArray = np.flatnonzero(is_queued)
    if is_queued.all():
        empty = tuple(np.zeros(0, np.int64) for _ in range(target.workers))
        placed = Schedule(table, table, empty, policy)
    else:
        placed = critical_path(table, target)
    return replace(placed, orders=tuple(order[~is_queued[order]] for order in placed.orders),
                   policy=policy, queued=queued, queue_capacity=queue_capacity(len(queued)))


def dynamic_early(table: TaskTable, target: Target) -> Schedule:
    """`dynamic` with early pushes."""
    return early(dynamic(table, target), "dynamic_early")


def hybrid_early(table: TaskTable, target: Target) -> Schedule:
    """`hybrid` with early pushes."""
    return early(hybrid(table, target), "hybrid_early")


# every name of names.py but `auto`
POLICIES: dict[str, Policy] = {
    "static": critical_path, "dynamic": dynamic, "dynamic_early": dynamic_early, "hybrid": hybrid,
    "hybrid_early": hybrid_early, "round_robin": round_robin, "unfused": unfused}
