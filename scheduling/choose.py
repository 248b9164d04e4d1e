"""Which part of a graph is placed in rows and which goes through the ready queue, and why.

Calls fall into runs: neighbours that are all dense, or all part of data-dependent dispatch. Runs of
the same device functions and sizes repeat from layer to layer, so one of each kind is estimated
in rows, through the queue, and through the queue with early pushes, under the cost model and for
every sample of what the device may decide. The schedule as a whole has early pushes or has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from event_tensor.conservative import conditional_calls, conservative, values_read
from event_tensor.graph import Call, Graph
from event_tensor.instantiate import instantiate
from event_tensor.task_table import IntArray, Runtime, TaskTable
from scheduling.early import early
from scheduling.names import AUTO
from scheduling.policies import critical_path, dispatched_calls, looked_up, queue_calls
from scheduling.schedule import Choice, Schedule, queue_capacity
from scheduling.simulator import estimate_makespan
from scheduling.target import Target

SEEDS = 3  # draws of task times per sample
MAX_TASKS = 600  # tasks of a run that are estimated: its first calls stand for the rest


def auto(graph: Graph, table: TaskTable, samples: Sequence[Runtime], target: Target
         ) -> Schedule:
    """The schedule of `table`, the conservative table of `graph`, as the estimates have it."""
    target = target.for_step(table)  # before parts of the step are looked at by themselves
    queued, choices = choose_placement(graph, table.bindings, samples, target)
    placed = (queue_calls(table, target, queued, AUTO) if queued
              else replace(critical_path(table, target), policy=AUTO))
    is_early = any(choice.in_queue and choice.early for choice in choices)
    return replace(placed, choices=choices, early=is_early)


def choose_placement(graph: Graph, bindings: Mapping[str, int], samples: Sequence[Runtime],
                     target: Target) -> tuple[frozenset[int], tuple[Choice, ...]]:
    """(calls to queue, the choices that led there)"""
    dispatched = dispatched_calls(graph)
    deciding = dispatched | _deciding_calls(graph)
    kinds: dict[tuple[object, ...], list[list[Call]]] = {}
    for _, run in groupby(graph.calls, lambda call: call.index in deciding):
        calls = list(run)
        kinds.setdefault(tuple(map(_signature, calls)), []).append(calls)
    indices = [frozenset(call.index for run in runs for call in run) for runs in kinds.values()]
    is_dispatched = [not dispatched.isdisjoint(of_kind) for of_kind in indices]
    plain = [_choose(graph, runs, of_dispatch, bindings, samples, target)
             for runs, of_dispatch in zip(kinds.values(), is_dispatched, strict=True)]
    pushed_early = [
        _pushed_early(choice, of_dispatch, target)
        for choice, of_dispatch in zip(plain, is_dispatched, strict=True)]
    # the first of equals: without early pushes
    choices = min((_settled(graph, indices, plain, target),
                   _settled(graph, indices, pushed_early, target)), key=_total_us)
    queued: set[int] = set()
    for choice, of_kind in zip(choices, indices, strict=True):
        if choice.in_queue:
            queued |= (of_kind & dispatched or of_kind) - looked_up(graph)
    return frozenset(queued), tuple(choices)


def _settled(graph: Graph, indices: Sequence[frozenset[int]], choices: Sequence[Choice],
             target: Target) -> list[Choice]:
    """No row whose tile may not run stands beside a queue: either all kinds of runs that have such
    calls are queued, or nothing is, whichever is estimated to take less. `indices`: per kind."""
    conditional = conditional_calls(graph)
    holds = [not conditional.isdisjoint(of_kind) for of_kind in indices]
    may_queue = conditional.isdisjoint(looked_up(graph))
    if not any(c.in_queue for c in choices) or may_queue and all(
            c.in_queue for c, held in zip(choices, holds, strict=True) if held):
        return list(choices)
    saved_us = sum(c.runs * (c.rows_us - _weighed(c.queue_us, target))
                   for c, held in zip(choices, holds, strict=True) if held or c.in_queue)
    in_queue = saved_us > 0 and may_queue
    reason = (f"tiles that may not run are all queued or nothing is, and the queue "
              f"{'saves' if in_queue else 'does not save'} time in all")
    return [replace(c, in_queue=in_queue, reason=reason)
            if c.in_queue != in_queue and (held or not in_queue) else c
            for c, held in zip(choices, holds, strict=True)]


def _total_us(choices: Sequence[Choice]) -> float:
    return sum(c.runs * (c.queue_us if c.in_queue else c.rows_us) for c in choices)


def _weighed(queue_us: float, target: Target) -> float:
    """The queue's time as it is set against that of rows. One worker shares with nobody."""
    return queue_us * (1 - target.rows_must_save) if target.workers > 1 else queue_us


def _pushed_early(choice: Choice, is_dispatched: bool, target: Target) -> Choice:
    """The choice for a schedule with early pushes."""
    if choice.early_us is None:
        return choice
    in_queue = _weighed(choice.early_us, target) < choice.rows_us
    return replace(choice, in_queue=in_queue, queue_us=choice.early_us, early=True,
                   reason=_reason(in_queue, is_dispatched, target) + ", pushing early")


def _reason(in_queue: bool, is_dispatched: bool, target: Target) -> str:
    verb = "saves more than it costs" if in_queue else "costs more than it saves"
    return (f"sharing {'released' if is_dispatched else 'known'} tasks at run time, "
            f"{target.pop_us:g} us per pop, {verb} where task times spread by "
            f"{target.spread:.0%}"
            + (" and other programs may want a core" if target.rows_must_save else ""))


def _deciding_calls(graph: Graph) -> frozenset[int]:
    """Calls that write what data-dependent edges read."""
    read = {tensor for call in graph.calls for edge in (*call.in_edges, *call.out_edges)
            for tensor in values_read(edge)}
    return frozenset(call.index for call in graph.calls for operand, tensor in call.accesses()
                     if operand.writes and tensor in read)


def _signature(call: Call) -> tuple[object, ...]:
    return call.function, call.tile_num, tuple(call.parameters.items())


def _choose(graph: Graph, runs: list[list[Call]], is_dispatched: bool,
            bindings: Mapping[str, int], samples: Sequence[Runtime], target: Target) -> Choice:
    calls = _first_tasks(runs[0], bindings)
    part = Graph(graph.name, [replace(call, index=k) for k, call in enumerate(calls)])
    names = tuple(call.name for call in calls)
    if looked_up(part):
        return Choice(names, len(runs), False, 0.0, 0.0,
                      "tasks look up what they wait for, which no event can push")
    if not is_dispatched and not target.queues_dense_parts:
        return Choice(names, len(runs), False, 0.0, 0.0,
                      f"{target.name} keeps in rows what depends on no data")
    expected = [instantiate(part, bindings, sample) for sample in samples or [{}]]
    placed = critical_path(instantiate(conservative(part), bindings) if is_dispatched
                           else expected[0], target)
    tables = [_as_it_may_go(table, target, seed) for table in expected for seed in range(SEEDS)]
    # a row whose tile no event releases is fetched and left
    in_rows = float(np.mean([
        estimate_makespan(released(placed, table), target).makespan_us
        + (placed.table.num_tasks - table.num_tasks) * target.task_us / target.workers
        for table in tables]))
    queued = [_in_queue(table, target) for table in tables]
    in_queue = float(np.mean([estimate_makespan(s, target).makespan_us for s in queued]))
    pushed_early = float(np.mean([estimate_makespan(early(s, "dynamic_early"), target).makespan_us
                                  for s in queued]))
    is_queued = _weighed(in_queue, target) < in_rows
    return Choice(names, len(runs), is_queued, in_rows, in_queue,
                  _reason(is_queued, is_dispatched, target), pushed_early)


def _first_tasks(run: list[Call], bindings: Mapping[str, int]) -> list[Call]:
    """The first calls of a run, as many as have MAX_TASKS tasks together, at least one. A run with
    triggered calls is kept whole: its tasks are few and belong together."""
    if any(call.is_triggered for call in run):
        return run
    kept: list[Call] = []
    total = 0
    for call in run:
        total += int(np.prod([int(n.evaluate(bindings)) for n in call.tile_num]))
        if kept and total > MAX_TASKS:
            break
        kept.append(call)
    return kept


def _as_it_may_go(table: TaskTable, target: Target, seed: int) -> TaskTable:
    """The table with task times that vary around the estimates, as on a real machine."""
    factor = np.random.default_rng(seed).lognormal(0.0, target.spread, table.num_tasks)
    return replace(table, bytes=table.bytes * factor, flops=table.flops * factor)


def released(placed: Schedule, table: TaskTable) -> Schedule:
    """The same places for the tasks that a sample releases: `table` is the sample's."""
    index = {key: task for task, key in enumerate(_keys(table))}
    keys = _keys(placed.table)

    def kept(tasks: IntArray) -> IntArray:
        return np.array([index[keys[t]] for t in tasks.tolist() if keys[t] in index], np.int64)

    queued = kept(placed.queued)
    return replace(placed, source=table, table=table, orders=tuple(map(kept, placed.orders)),
                   queued=queued, queue_capacity=queue_capacity(len(queued)))


def _keys(table: TaskTable) -> list[tuple[int, ...]]:
    return [(call, *tile) for call, tile in zip(table.call.tolist(), table.tile.tolist(),
                                                strict=True)]


def _in_queue(table: TaskTable, target: Target) -> Schedule:
    empty = tuple(np.zeros(0, np.int64) for _ in range(target.workers))
    return Schedule(table, table, empty, "dynamic", np.arange(table.num_tasks),
                    queue_capacity(table.num_tasks))
