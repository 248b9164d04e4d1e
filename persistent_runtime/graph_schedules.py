"""The schedules of one graph on one kernel: a proved one for every shape that it meets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from event_tensor.edges import IndexRange
from event_tensor.graph import Graph
from event_tensor.symbols import Expr, Symbol
from event_tensor.task_table import Runtime
from persistent_runtime.cache.schedules import KeptSchedules
from persistent_runtime.launch.launch import Kernel
from persistent_runtime.launch.memory import Buffers
from persistent_runtime.rows.encode import ArgumentEncoder, EncodedSchedule, encode_schedule
from persistent_runtime.rows.segment import Segment
from scheduling.pipeline import Phase, build_schedule
from scheduling.target import Target

Samples = Callable[[Mapping[str, int]], Sequence[Runtime]]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a kernel's schedules are made; `Megakernel` explains the fields."""

    policy: str
    target: Target
    samples: Samples | None
    keep_schedules: bool
    phase: Phase


class GraphSchedules:
    """graph: with derived events; its device functions are among those of `kernel`."""

    def __init__(self, graph: Graph, kernel: Kernel, recipe: Recipe) -> None:
        self.graph = graph
        self.arguments = ArgumentEncoder(graph)
        self._kernel, self._recipe = kernel, recipe
        self._inputs = _schedule_inputs(graph)
        self._schedules: dict[tuple[Any, ...], EncodedSchedule] = {}
        self._kept: KeptSchedules | None = None
        if recipe.keep_schedules:
            with recipe.phase("schedule: look up"):
                self._kept = KeptSchedules(graph, recipe.policy, recipe.target, kernel.kinds)

    @property
    def schedules(self) -> list[EncodedSchedule]:
        """One for each shape met so far."""
        return list(self._schedules.values())

    def schedule(self, bindings: Mapping[str, int]) -> EncodedSchedule:
        """The proved schedule for these sizes; the same one for sizes with the same tiles."""
        shape = self.shape_key(bindings)
        streamed = self._kernel.streamed_calls(self.graph, bindings)
        key = (shape, streamed)
        if key not in self._schedules:
            encoded = self._find_or_make(bindings, shape)
            self._schedules[key] = self._kernel.with_streams(encoded, self.arguments, streamed)
        return self._schedules[key]

    def segment(self, bindings: Mapping[str, int], buffers: Buffers, **rows: int) -> Segment:
        """A segment of a launch: the schedule for `bindings` over the memory in `buffers`."""
        return Segment(self.schedule(bindings),
                       self.arguments.encode(bindings, buffers.addresses), buffers, dict(bindings),
                       **rows)

    def shape_key(self, bindings: Mapping[str, int]) -> tuple[int, ...]:
        """All that a schedule depends on at these sizes."""
        return tuple(int(expr.evaluate(bindings)) for expr in self._inputs)

    def _find_or_make(self, bindings: Mapping[str, int], shape: tuple[int, ...]
                      ) -> EncodedSchedule:
        samples = self._recipe.samples(bindings) if self._recipe.samples else ()
        if self._kept is None:
            return self._make(bindings, samples)
        with self._recipe.phase("schedule: look up"):
            file = self._kept.file(shape, samples)
            encoded = self._kept.load(file)
        if encoded is None:
            encoded = self._make(bindings, samples)
            with self._recipe.phase("schedule: keep"):
                self._kept.save(file, encoded)
        return encoded

    def _make(self, bindings: Mapping[str, int], samples: Sequence[Runtime]) -> EncodedSchedule:
        recipe = self._recipe
        schedule = build_schedule(self.graph, bindings, recipe.policy, recipe.target, samples,
                                  recipe.phase)
        with recipe.phase("schedule: encode"):
            return encode_schedule(schedule, self._kernel.kinds, self.arguments)


def _schedule_inputs(graph: Graph) -> tuple[Expr, ...]:
    """Everything a schedule depends on: tile counts, event shapes, and sizes in edge maps."""
    exprs: dict[Expr, None] = {n: None for call in graph.calls for n in call.tile_num}
    exprs |= {d: None for event in graph.events() for d in event.shape}
    for call in graph.calls:
        for edge in (*call.in_edges, *call.out_edges):
            for index in edge.map.indices:
                parts = (index.start, index.stop) if isinstance(index, IndexRange) else (index,)
                for part in parts:
                    exprs |= {Symbol(name): None for name in part.symbols()
                              if name not in edge.map.axes}
    return tuple(e for e in exprs if e.symbols())
