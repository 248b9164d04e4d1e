"""From a graph and its sizes to a schedule that is proved: the pipeline, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from event_tensor.conservative import conservative, data_dependent_events
from event_tensor.errors import UserError
from event_tensor.graph import Graph
from event_tensor.instantiate import instantiate
from event_tensor.task_table import Runtime, TaskTable
from event_tensor.verify import verify_table
from scheduling.choose import auto
from scheduling.merge import merge_events
from scheduling.names import AUTO, SCHEDULES, check_name
from scheduling.policies import POLICIES
from scheduling.prune import prune_waits
from scheduling.schedule import Schedule
from scheduling.target import Target
from scheduling.verify_schedule import verify_schedule

Phase = Callable[[str], AbstractContextManager[None]]  # what runs inside is booked under the name


def no_phase(name: str) -> AbstractContextManager[None]:
    """Books nothing."""
    return nullcontext()


def build_schedule(graph: Graph, bindings: Mapping[str, int], name: str, target: Target,
                   samples: Sequence[Runtime] = (), phase: Phase = no_phase) -> Schedule:
    """The proved schedule of `graph` for these sizes, by its name in `names.SCHEDULES`.

    `samples`: for a graph with data-dependent edges, values of the tensors they read; each is
    proved. The schedule is made from the conservative graph and holds for all of them. Raises
    errors that name what is unsafe.
    """
    if not samples and data_dependent_events(graph):
        raise UserError(f"graph {graph.name} has data-dependent edges; give sample values of the "
                        f"tensors they read, to prove it with")
    draft = _Draft(graph, bindings, check_name(name), target, samples)
    for booked_as, stage in STAGES:
        with phase(booked_as):
            draft = stage(draft)
    return draft.schedule


def may_queue(graph: Graph, name: str, target: Target) -> bool:
    """Whether schedules of this name may queue tasks, or rows have edges that read a tensor."""
    return (SCHEDULES[name].queues or bool(data_dependent_events(graph))
            or (name == AUTO and target.queues_dense_parts))


@dataclass(frozen=True, slots=True)
class _Draft:
    """What is given, and what the stages have made of it so far. tables: one for each sample;
    table: what is scheduled, the conservative one where there are samples."""

    graph: Graph
    bindings: Mapping[str, int]
    name: str
    target: Target
    samples: Sequence[Runtime]
    tables: tuple[TaskTable, ...] = ()
    _table: TaskTable | None = None
    _schedule: Schedule | None = None

    @property
    def table(self) -> TaskTable:
        assert self._table is not None
        return self._table

    @property
    def schedule(self) -> Schedule:
        assert self._schedule is not None
        return self._schedule


def _instantiated(draft: _Draft) -> _Draft:
    tables = tuple(instantiate(draft.graph, draft.bindings, runtime)
                   for runtime in draft.samples or [{}])
    table = (instantiate(conservative(draft.graph), draft.bindings) if draft.samples
             else tables[0])
    return replace(draft, tables=tables, _table=table)


def _graph_proved(draft: _Draft) -> _Draft:
    for table in draft.tables:
        verify_table(table)
    return draft


def _placed(draft: _Draft) -> _Draft:
    placed = (auto(draft.graph, draft.table, draft.samples, draft.target) if draft.name == AUTO
              else POLICIES[draft.name](draft.table, draft.target))
    return replace(draft, _schedule=placed)


def _own_events_proved(draft: _Draft) -> _Draft:
    """A policy that brings events of its own has them proved as well."""
    source = draft.schedule.source
    if source is not draft.table:
        for runtime in draft.samples or [{}]:
            verify_table(replace(source, runtime=runtime))
    return draft


def _pruned(draft: _Draft) -> _Draft:
    return replace(draft, _schedule=merge_events(prune_waits(draft.schedule)))


def _proved(draft: _Draft) -> _Draft:
    return replace(draft, _schedule=verify_schedule(draft.schedule))


# what a stage is booked as, and the stage
STAGES: tuple[tuple[str, Callable[[_Draft], _Draft]], ...] = (
    ("schedule: instantiate", _instantiated),
    ("schedule: prove graph", _graph_proved),
    ("schedule: place", _placed),
    ("schedule: prove graph", _own_events_proved),
    ("schedule: prune waits", _pruned),
    ("schedule: verify", _proved))
