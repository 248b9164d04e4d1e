"""A graph compiled once and run for any sizes: derive, prove, schedule, encode, launch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from event_tensor.conservative import conservative, data_dependent_events
from event_tensor.derive import derive_events
from event_tensor.edges import IndexRange
from event_tensor.errors import UserError
from event_tensor.graph import Graph
from event_tensor.instantiate import instantiate
from event_tensor.symbols import Expr, Symbol
from event_tensor.task_table import Runtime
from event_tensor.verify import verify_structure, verify_table
from persistent_runtime.backends import Backend, CpuBackend
from persistent_runtime.cache.schedules import KeptSchedules
from persistent_runtime.formats import format_of
from persistent_runtime.function_table import FunctionTable
from persistent_runtime.launch.launch import Kernel, Launch, Progress
from persistent_runtime.launch.memory import Buffers
from persistent_runtime.rows.encode import ArgumentEncoder, EncodedSchedule, encode_schedule
from persistent_runtime.rows.segment import Segment
from persistent_runtime.rows.weight_pieces import streamed_calls
from scheduling.choose import auto
from scheduling.merge import merge_events
from scheduling.policies import POLICIES
from scheduling.prune import prune_waits
from scheduling.static_schedule import StaticSchedule
from scheduling.target import Target
from scheduling.verify_schedule import verify_schedule

AUTO = "auto"  # rows or queue, chosen for each part of the graph by the cost model
QUEUED_POLICIES = ("dynamic", "hybrid")
Samples = Callable[[Mapping[str, int]], Sequence[Runtime]]
Phase = Callable[[str], AbstractContextManager[None]]  # what runs inside is booked under the name


def no_phase(name: str) -> AbstractContextManager[None]:
    """Books nothing."""
    return nullcontext()


def build_schedule(graph: Graph, bindings: Mapping[str, int], policy: str, target: Target,
                   samples: Sequence[Runtime] = (), phase: Phase = no_phase) -> StaticSchedule:
    """instantiate → prove → place → prune, merge → prove. Raises errors that name what is unsafe.

    `samples`: for a graph with data-dependent edges, values of the tensors they read; each is
    proved. The schedule is made from the conservative graph and holds for all of them.
    """
    if not samples and data_dependent_events(graph):
        raise UserError(f"graph {graph.name} has data-dependent edges; give sample values of the "
                        f"tensors they read, to prove it with")
    with phase("schedule: instantiate"):
        tables = [instantiate(graph, bindings, runtime) for runtime in samples or [{}]]
        table = instantiate(conservative(graph), bindings) if samples else tables[0]
    with phase("schedule: prove graph"):
        for proved in tables:
            verify_table(proved)
    with phase("schedule: place"):
        placed = (auto(graph, table, samples, target) if policy == AUTO
                  else POLICIES[policy](table, target))
    if placed.source is not table:  # the policy brought its own events: prove those as well
        with phase("schedule: prove graph"):
            for runtime in samples or [{}]:
                verify_table(replace(placed.source, runtime=runtime))
    with phase("schedule: prune waits"):
        pruned = merge_events(prune_waits(placed))
    with phase("schedule: verify"):
        return verify_schedule(pruned)


class Megakernel:
    """One compilation of a graph's device functions, and a schedule for each shape it meets.

    backend: where it runs, by default on this processor; workers: by default as many as run at
    once; policy: "auto" or a key of `scheduling.policies.POLICIES`;
    samples: bindings → values of the tensors that data-dependent edges read, one mapping per case
    to prove; early_push: queued tasks are pushed when their producers are dispatched;
    keep_schedules: whether proved schedules stay on disk for other processes; phase: told what
    takes time.
    """

    def __init__(self, graph: Graph, *, backend: Backend | None = None,
                 workers: int | None = None, policy: str = "critical_path",
                 progress: Progress | None = None,
                 samples: Samples | None = None, early_push: bool = False,
                 keep_schedules: bool = False, phase: Phase = no_phase) -> None:
        if policy not in (AUTO, *POLICIES):
            raise UserError(f"unknown schedule {policy!r}; use one of {AUTO}, "
                            f"{', '.join(POLICIES)}")
        self.backend = backend or CpuBackend()
        self.target = self.backend.target(workers)
        self.workers_from = self.backend.workers_from(workers)
        self.policy = policy
        self.samples = samples
        self.early_push = early_push
        self._phase = phase
        self._keeps_schedules = keep_schedules
        with phase("derive events"):
            self.graph = _derived(graph)
        self.compilations = 0
        self.launches = 0
        with phase("compile"):
            self.kernel = self._compile(progress)
        self._serve(self.graph)

    def for_graph(self, graph: Graph) -> Megakernel:
        """The same compilation with schedules of another graph, one launch's segments with those
        of this one. Raises UserError for a graph of device functions that it does not have."""
        missing = [call.function.name for call in graph.calls if not self.kernel.kinds.serves(call)]
        if missing:
            raise UserError(f"graph {graph.name} calls {', '.join(dict.fromkeys(missing))} in "
                            f"formats that the kernel of {self.graph.name} does not have; compile "
                            f"it by itself")
        other = copy.copy(self)
        with self._phase("derive events"):
            other._serve(_derived(graph))
        return other

    def _serve(self, graph: Graph) -> None:
        """What there is for each graph."""
        self.graph = graph
        self.arguments = ArgumentEncoder(graph)
        self._schedule_inputs = _schedule_inputs(graph)
        self._schedules: dict[tuple[Any, ...], EncodedSchedule] = {}
        self._kept: KeptSchedules | None = None
        if self._keeps_schedules:
            with self._phase("schedule: look up"):
                self._kept = KeptSchedules(graph, self.policy, self.target, self.kernel.kinds,
                                           self.early_push)

    def _compile(self, progress: Progress | None) -> Kernel:
        """The only place that compiles: whatever shape comes later must do with what this made."""
        self.compilations += 1
        is_dynamic = (self.policy in QUEUED_POLICIES or bool(data_dependent_events(self.graph))
                      or (self.policy == AUTO and self.target.queues_dense_parts))
        return self.backend.compile(self.graph, FunctionTable.of(self.graph), self.target, progress,
                                    is_dynamic)

    @property
    def num_workers(self) -> int:
        return self.kernel.num_workers

    def schedule(self, bindings: Mapping[str, int]) -> EncodedSchedule:
        """The proved schedule for these sizes; the same one for sizes with the same tiles."""
        streamed = (streamed_calls(self.graph, bindings) if self.kernel.streams_weights else ())
        key = (*self._shape_key(bindings), streamed)
        if key not in self._schedules:
            self._schedules[key] = self._find_or_make(bindings, streamed, key)
        return self._schedules[key]

    def _find_or_make(self, bindings: Mapping[str, int], streamed: Sequence[int],
                      key: tuple[Any, ...]) -> EncodedSchedule:
        samples = self.samples(bindings) if self.samples else ()
        if self._kept is None:
            return self._make(bindings, streamed, samples)
        with self._phase("schedule: look up"):
            file = self._kept.file(key, samples)
            schedule = self._kept.load(file)
        if schedule is None:
            schedule = self._make(bindings, streamed, samples)
            with self._phase("schedule: keep"):
                self._kept.save(file, schedule)
        return schedule

    def _make(self, bindings: Mapping[str, int], streamed: Sequence[int],
              samples: Sequence[Runtime]) -> EncodedSchedule:
        schedule = build_schedule(self.graph, bindings, self.policy, self.target, samples,
                                  self._phase)
        with self._phase("schedule: encode"):
            return encode_schedule(schedule, self.kernel.kinds, self.arguments, self.early_push,
                                   self.target.prefetch_bytes, streamed)

    @property
    def schedules(self) -> list[EncodedSchedule]:
        """One for each shape met so far."""
        return list(self._schedules.values())

    def segment(self, bindings: Mapping[str, int], buffers: Buffers, **rows: int) -> Segment:
        """A segment of a launch: the schedule for `bindings` over the memory in `buffers`."""
        return Segment(self.schedule(bindings),
                       self.arguments.encode(bindings, buffers.addresses), buffers, dict(bindings),
                       **rows)

    def launch(self, segments: Sequence[Segment], *, finished: Any = None,
               timeout_s: float = 30.0, trace_steps: int = 0) -> Launch:
        """Start one launch over these segments; see `Kernel.launch`."""
        self.launches += 1
        scratch = max((_scratch_bytes(s) for s in segments), default=0)
        return self.kernel.launch(segments, scratch, finished=finished, timeout_s=timeout_s,
                                  trace_steps=trace_steps)

    def run(self, bindings: Mapping[str, int], tensors: Mapping[str, Any], *,
            timeout_s: float = 30.0) -> None:
        """One step over the given memory: tensor name → contiguous array, which the CPU reads and
        writes in place. Raises UserError when a tensor is missing or its shape is another."""
        buffers = self.backend.buffers()
        for spec in self.graph.tensors():
            if spec.name not in tensors:
                raise UserError(f"no memory is given for tensor {spec.name!r}")
            shape = format_of(spec.dtype).stored_shape(
                [int(d.evaluate(bindings)) for d in spec.shape])
            if tuple(tensors[spec.name].shape) != shape:
                raise UserError(f"tensor {spec.name!r} must have shape {shape} for "
                                f"{dict(bindings)}; it has {tuple(tensors[spec.name].shape)}")
            buffers.bind(spec, tensors[spec.name])
        self.launch([self.segment(bindings, buffers)], timeout_s=timeout_s).wait()

    def _shape_key(self, bindings: Mapping[str, int]) -> tuple[Any, ...]:
        return tuple(expr.evaluate(bindings) for expr in self._schedule_inputs)


def _scratch_bytes(segment: Segment) -> int:
    return max(int(c.function.scratch_bytes.substitute(c.sizes).evaluate(segment.bindings))
               for c in segment.encoded.schedule.table.graph.calls)


def _derived(graph: Graph) -> Graph:
    derived = derive_events(graph)
    verify_structure(derived)
    return derived


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
