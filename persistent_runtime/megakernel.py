"""Graphs compiled once, together, and run for any sizes: derive, compile, schedule, launch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from event_tensor.derive import derive_events
from event_tensor.errors import UserError
from event_tensor.graph import Call, Graph
from event_tensor.verify import verify_structure
from persistent_runtime.backend import Backend
from persistent_runtime.backends import find_backend
from persistent_runtime.formats import format_of
from persistent_runtime.function_table import FunctionTable, formats_of
from persistent_runtime.graph_schedules import GraphSchedules, Recipe, Samples
from persistent_runtime.launch.launch import Kernel, Launch, Progress
from persistent_runtime.launch.memory import Buffers
from persistent_runtime.rows.encode import EncodedSchedule
from persistent_runtime.rows.segment import Segment
from scheduling.names import check_name
from scheduling.pipeline import Phase, may_queue, no_phase


class Megakernel:
    """One compilation for all device functions and calls of its graphs, and for each graph a
    schedule for every shape it meets. A launch may have segments of several graphs.

    backend: where it runs, by default on this processor; workers: by default as many as run at
    once; policy: a name of `scheduling.names.SCHEDULES`; samples: bindings → values of the tensors
    that data-dependent edges read, one mapping per case to prove; keep_schedules: whether proved
    schedules stay on disk for other processes; phase: told what takes time.
    """

    def __init__(self, *graphs: Graph, backend: Backend | None = None, workers: int | None = None,
                 policy: str = "static", progress: Progress | None = None,
                 samples: Samples | None = None, keep_schedules: bool = False,
                 phase: Phase = no_phase) -> None:
        if not graphs:
            raise UserError("a megakernel is compiled for one graph or several; give it at least "
                            "one")
        self.backend = backend or find_backend("cpu")
        self.target = self.backend.target(workers)
        self.workers_from = self.backend.workers_from(workers)
        self.policy = check_name(policy)
        self.samples = samples
        self.launches = 0
        self.compilations = 0
        with phase("derive events"):
            derived = list(map(_derived, graphs))
        self._calls = tuple(call for graph in derived for call in graph.calls)
        self.functions = tuple({call.function: None for call in self._calls})
        with phase("compile"):
            self.kernel = self._compile(derived, progress)
        with phase("measure the machine"):  # kept, as compiled functions are
            self.target = self.backend.measured(self.kernel, self.target)
        self._recipe = Recipe(policy, self.target, samples, keep_schedules, phase)
        self.parts = [GraphSchedules(graph, self.kernel, self._recipe) for graph in derived]

    def _compile(self, graphs: Sequence[Graph], progress: Progress | None) -> Kernel:
        """The only place that compiles: whatever shape comes later must do with what this made."""
        self.compilations += 1
        is_dynamic = any(may_queue(graph, self.policy, self.target) for graph in graphs)
        kinds = FunctionTable.of(self._calls)
        return self.backend.compile(self._calls, kinds, self.target, progress,
                                    is_dynamic)

    def add(self, graph: Graph) -> GraphSchedules:
        """Schedules of another graph on the same compilation.

        Raises UserError, naming the call, for one of a device function, or with formats or sizes,
        that the kernel was not compiled for."""
        with self._recipe.phase("derive events"):
            derived = _derived(graph)
        self._check_calls(derived)
        self.parts.append(GraphSchedules(derived, self.kernel, self._recipe))
        return self.parts[-1]

    def _check_calls(self, graph: Graph) -> None:
        known = set(map(_compiled_for, self._calls))
        for call in graph.calls:
            if call.function not in self.functions:
                raise UserError(
                    f"{call.name} of graph {graph.name} calls {call.function.name}, which the "
                    f"kernel of {self.graph.name} does not have; give both graphs to Megakernel")
            if _compiled_for(call) not in known:
                raise UserError(
                    f"{call.name} of graph {graph.name} calls {call.function.name} with operands, "
                    f"formats or sizes that the kernel of {self.graph.name} was not compiled for; "
                    f"give both graphs to Megakernel")

    @property
    def num_workers(self) -> int:
        return self.kernel.num_workers

    @property
    def graph(self) -> Graph:
        """The first graph, with its derived events."""
        return self.parts[0].graph

    @property
    def schedules(self) -> list[EncodedSchedule]:
        """Of the first graph, one for each shape met so far."""
        return self.parts[0].schedules

    def schedule(self, bindings: Mapping[str, int]) -> EncodedSchedule:
        """`GraphSchedules.schedule` of the first graph."""
        return self.parts[0].schedule(bindings)

    def segment(self, bindings: Mapping[str, int], buffers: Buffers, **rows: int) -> Segment:
        """`GraphSchedules.segment` of the first graph."""
        return self.parts[0].segment(bindings, buffers, **rows)

    def launch(self, segments: Sequence[Segment], *, finished: Any = None,
               timeout_s: float = 30.0, trace_steps: int = 0) -> Launch:
        """Start one launch over these segments; see `Kernel.launch`."""
        self.launches += 1
        return self.kernel.launch(segments, finished=finished, timeout_s=timeout_s,
                                  trace_steps=trace_steps)

    def run(self, bindings: Mapping[str, int], tensors: Mapping[str, Any], *,
            timeout_s: float = 30.0) -> None:
        """One step of the first graph over the given memory: tensor name → contiguous array, which
        the CPU reads and writes in place. Raises UserError when a tensor is missing or its shape is
        another."""
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


def _derived(graph: Graph) -> Graph:
    derived = derive_events(graph)
    verify_structure(derived)
    return derived


def _compiled_for(call: Call) -> tuple[object, ...]:
    """What a backend's configuration may depend on: the function, its sizes, which operands are
    bound, and in which formats."""
    return (call.function, *sorted((name, repr(value)) for name, value in call.parameters.items()),
            *formats_of(call))
