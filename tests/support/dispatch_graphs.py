"""Random graphs with data-dependent edges, whose tasks note when they begin, end and how often.

Routing blocks (update, trigger, partial reads), look-ups (a wait found in a tensor) and dense calls
with joins, in random order. Choices change from step to step. `check_log` judges a run by times:
exactly the tasks of each step's own table ran, once, and each after those it depends on.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, field

import numpy as np

from event_tensor.device_function import WHOLE, DeviceFunction, Operand, Tile, reads, writes
from event_tensor.edges import span, trigger
from event_tensor.graph import Graph
from event_tensor.instantiate import instantiate
from event_tensor.symbols import Symbol
from event_tensor.task_table import TaskTable
from event_tensor.tensors import RUNTIME, EventTensor, TensorSpec
from persistent_runtime.cpu.bodies.arguments import (
    INT32,
    INT64,
    dim,
    is_given,
    operand,
    record_offsets,
)
from persistent_runtime.cpu.compile.registry import cpu_body
from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.intrinsics import monotonic_ns
from persistent_runtime.launch.memory import Buffers
from persistent_runtime.megakernel import Megakernel
from persistent_runtime.rows import layout
from scheduling.names import SCHEDULES

BEGIN, END, RUNS, LOG_WORDS = 0, 1, 2, 3
COPIES = 4
LOGGED = DeviceFunction("logged", ("i", "j"), tuple(
    [Operand("log", "write", (Tile("i"), Tile("j"), WHOLE))]
    + [Operand(f"{side}{c}", access, (WHOLE,), optional=True)
       for c in range(COPIES) for side, access in (("from", "read"), ("to", "write"))]))
_LOGGED = record_offsets(LOGGED)


@device_jit
def _copy(arguments, source, target, step):
    if is_given(arguments, source):
        size = dim(arguments, source, 1)
        begin = (step % dim(arguments, source, 0)) * size
        for k in range(size):
            operand(arguments, target, INT32)[k] = operand(arguments, source, INT32)[begin + k]


@cpu_body(LOGGED)
def logged(arguments, tile, step, scratch, formats):
    index = step[layout.STEP_INDEX]
    words = dim(arguments, _LOGGED.log, 2)
    at = (tile[0] * dim(arguments, _LOGGED.log, 1) + tile[1]) * words + index * LOG_WORDS
    log = operand(arguments, _LOGGED.log, INT64)
    log[at + BEGIN] = monotonic_ns()
    _copy(arguments, _LOGGED.from0, _LOGGED.to0, index)
    _copy(arguments, _LOGGED.from1, _LOGGED.to1, index)
    _copy(arguments, _LOGGED.from2, _LOGGED.to2, index)
    _copy(arguments, _LOGGED.from3, _LOGGED.to3, index)
    for _ in range((at * 2654435761) & 255):
        monotonic_ns()
    log[at + RUNS] += 1
    log[at + END] = monotonic_ns()


def logged_function(operands):
    """A declaration for these operands, with a name of its own and the body that all share."""
    digest = hashlib.sha256(repr(operands).encode()).hexdigest()[:12]
    declaration = DeviceFunction(f"logged_{digest}", LOGGED.axes, operands)
    cpu_body(declaration)(logged)
    return declaration


@dataclass
class DispatchGraph:
    """`choices`: name of a control tensor → its values [variants, size]."""

    graph: Graph
    choices: dict[str, np.ndarray] = field(default_factory=dict)
    variants: int = 3

    def runtime(self, step: int) -> dict[str, np.ndarray]:
        """Values of the control tensors in a step, in their shapes."""
        return {t.name: self.choices[t.name][step % self.variants].reshape(
                    [int(d.evaluate({})) for d in t.shape])
                for t in self.graph.tensors() if t.name in self.choices}

    def samples(self, bindings) -> list[dict[str, np.ndarray]]:
        return [self.runtime(step) for step in range(self.variants)]


class _Builder:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.made = DispatchGraph(Graph("dispatch"))
        self.events: list[tuple[EventTensor, int]] = []  # complete in every step; and their size

    def call(self, name, grid, in_edges=None, out_edges=None, copies=()):
        """A call that logs; a dense one also notifies an event that later calls may wait for."""
        log = TensorSpec(f"log_{len(self.made.graph.calls)}",
                         (grid[0], grid[1], Symbol("log_words")), "int64")
        pairs = [pair for target in copies for pair in (
            TensorSpec(f"choices_{target.name}",
                       (self.made.variants, self.made.choices[target.name].shape[1]), "int32",
                       "control"), target)]
        operands = [LOGGED.operands[0]]
        for (operand_, tensor) in zip(LOGGED.operands[1:], [*pairs, *[None] * 8], strict=False):
            region = (WHOLE,) * (len(tensor.shape) if tensor else 1)
            make = reads if operand_.access == "read" else writes
            operands.append(Operand(operand_.name, make("x").access, region, True))
        function = logged_function(tuple(operands))
        args = [log, *pairs, *[None] * (2 * COPIES - len(pairs))]
        return self.made.graph.call_device(function, tile_num=grid, args=args, name=name,
                                           in_edges=in_edges, out_edges=out_edges)

    def joins(self):
        """Waits for one to three earlier events, by maps of every kind."""
        chosen = self.rng.sample(self.events, min(len(self.events), self.rng.choice((1, 1, 2, 3))))
        return {event: self._map(size) for event, size in chosen}

    def _map(self, size):
        shift, kind = self.rng.randrange(size), self.rng.randrange(3)
        if kind == 0:
            return lambda i, j: (i + j + shift) % size
        if kind == 1:
            return lambda i, j: span(0, size)
        return lambda i, j: span((i + shift) % size, (i + shift) % size + 1)

    def event_of(self, name, rows):
        """An event tensor for a dense call of so many rows, and the map that notifies it."""
        kind = self.rng.randrange(3)
        event = EventTensor((1 if kind == 0 else rows,), name=name)
        self.events.append((event, 1 if kind == 0 else rows))
        return {event: (lambda i, j: 0) if kind == 0 else (lambda i, j: i)}

    def dense(self):
        rows, columns = self.rng.randint(1, 4), self.rng.randint(1, 2)
        in_edges = self.joins()
        name = f"dense_{len(self.made.graph.calls)}"
        self.call(name, (rows, columns), in_edges, self.event_of(f"E_{name}", rows))

    def routing_block(self):
        """pick → scatter → triggered (→ chained) → merge; with joins wherever they are allowed."""
        b = len(self.made.graph.calls)
        rng, variants = self.rng, self.made.variants
        tokens, experts, tile_m = rng.randint(1, 5), rng.randint(1, 4), rng.choice((1, 2))
        columns = rng.randint(1, 2)
        most = min(experts, tokens)
        tiles = most + (tokens - most) // tile_m
        ids, counts, indptr, rows = (TensorSpec(f"{name}_{b}", shape, "int32") for name, shape in (
            ("ids", (tokens,)), ("counts", (experts,)), ("indptr", (experts + 1,)),
            ("rows", (tiles, tile_m))))
        values = [route([rng.randrange(experts) for _ in range(tokens)], experts, tiles, tile_m)
                  for _ in range(variants)]
        for k, tensor in enumerate((ids, counts, indptr, rows)):
            self.made.choices[tensor.name] = np.array([v[k] for v in values], np.int32)
        picked = EventTensor((), name=f"E_pick_{b}")
        of_expert = EventTensor((experts,), RUNTIME, f"E_expert_{b}", counts)
        of_row = EventTensor((tokens,), columns, f"E_row_{b}")
        of_tile = EventTensor((tiles,), name=f"E_tile_{b}")
        self.call(f"pick_{b}", (1, 1), self.joins() if self.events else None,
                  {picked: lambda i, j: ()}, copies=(ids, counts, indptr, rows))
        self.call(f"scatter_{b}", (tokens, 1), {picked: lambda i, j: (), **self.joins_or_none()},
                  {of_expert: lambda i, j: ids[i]})
        released = {of_expert: trigger(lambda e: span(indptr[e], indptr[e + 1]))}
        if rng.random() < 0.5:
            self.call(f"triggered_{b}", (tiles, columns), released | self.joins_or_none(),
                      {of_row: lambda i, j: rows[i]})
        else:
            self.call(f"triggered_{b}", (tiles, 2), released, {of_tile: lambda i, j: i})
            self.call(f"chained_{b}", (tiles, columns),
                      {of_tile: lambda i, j: i, **self.joins_or_none()},
                      {of_row: lambda i, j: rows[i]})
        if rng.random() < 0.3:  # a row looks up which events to wait for
            self.call(f"look_up_{b}", (tokens, 1), {picked: lambda i, j: (),
                                                    of_expert: lambda i, j: ids[i]},
                      self.event_of(f"E_look_up_{b}", tokens))
        self.call(f"merge_{b}", (tokens, 1), {of_row: lambda i, j: i, **self.joins_or_none()},
                  self.event_of(f"E_merge_{b}", tokens))

    def joins_or_none(self):
        return self.joins() if self.events and self.rng.random() < 0.4 else {}


def route(ids, experts, tiles, tile_m):
    """ids, counts, indptr and rows of a routing of one choice per token."""
    counts = np.bincount(ids, minlength=experts)
    indptr = np.concatenate([[0], np.cumsum(-(-counts // tile_m))])
    rows, taken = np.full(tiles * tile_m, -1), np.zeros(experts, int)
    for token, expert in enumerate(ids):
        rows[indptr[expert] * tile_m + taken[expert]] = token
        taken[expert] += 1
    return ids, counts, indptr, rows


def dispatch_graph(seed: int) -> DispatchGraph:
    """2 to 6 parts, at least one of them a routing block."""
    rng = random.Random(seed)
    builder = _Builder(rng)
    parts = [rng.choice((builder.dense, builder.dense, builder.routing_block))
             for _ in range(rng.randint(1, 5))]
    parts.insert(rng.randint(0, len(parts)), builder.routing_block)
    rows = rng.randint(1, 3)
    builder.call("first", (rows, 1), None, builder.event_of("E_first", rows))
    for part in parts:
        part()
    return builder.made


def check_log(made: DispatchGraph, tables: list[TaskTable], logs: dict[str, np.ndarray],
              steps: int, may_run_idle: bool) -> str:
    """Empty, or what went wrong. `tables`: one per variant. `may_run_idle`: tiles that wait for
    unused tiles may run as well, as they do in static schedules."""
    earlier_end = 0
    for step in range(steps):
        table = tables[step % made.variants]
        times = np.zeros((table.num_tasks, 2), np.int64)
        ran = {name: log.reshape(*log.shape[:2], -1, LOG_WORDS)[:, :, step] for name, log
               in logs.items()}
        for call in made.graph.calls:
            tasks = table.tasks_of(call.index)
            records = ran[call.args[0].name]
            due = np.zeros(records.shape[:2], int)
            due[table.tile[tasks, 0], table.tile[tasks, 1]] = 1
            idle_is_fine = may_run_idle and call.name.startswith("chained")
            wrong = (records[:, :, RUNS] != due) & ~(idle_is_fine & (due == 0))
            if wrong.any():
                return f"step {step}: {call.name} ran {records[:, :, RUNS].tolist()}"
            times[tasks] = records[table.tile[tasks, 0], table.tile[tasks, 1]][:, [BEGIN, END]]
        if times[:, 0].min() < earlier_end:
            return f"step {step} begins before the one before it has ended"
        earlier_end = times[:, 1].max()
        indptr, producer = table.producers()
        for task, event in zip(table.wait_task, table.wait_event, strict=True):
            for before in producer[indptr[event]:indptr[event + 1]]:
                if times[before, 1] > times[task, 0]:
                    return (f"step {step}: {table.task_name(task)} begins before "
                            f"{table.task_name(before)} ends")
    return ""


def run_and_check(made: DispatchGraph, kernel: Megakernel, steps: int,
                  timeout_s: float = 60.0) -> str:
    """Launches `steps` steps on the kernel of made.graph; empty, or what went wrong."""
    bindings = {"log_words": steps * LOG_WORDS}
    buffers = Buffers()
    for spec in kernel.graph.tensors():
        memory = buffers.allocate(spec, tuple(int(d.evaluate(bindings)) for d in spec.shape))
        if spec.name.startswith("choices_"):
            memory[:] = made.choices[spec.name.removeprefix("choices_")]
    kernel.launch([kernel.segment(bindings, buffers, steps=steps)],
                  timeout_s=timeout_s).wait()
    logs = {t.name: buffers.array(t) for t in kernel.graph.tensors() if t.name.startswith("log_")}
    tables = [instantiate(kernel.graph, bindings, made.runtime(s)) for s in range(made.variants)]
    return check_log(made, tables, logs, steps, not SCHEDULES[kernel.policy].queues)


