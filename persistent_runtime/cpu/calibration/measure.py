"""Short launches of the compiled worker that tell how fast this machine runs a decoder's tasks.

They run on what a decoder compiles anyway, the worker and the body of `norm_linear`, so that a
calibration compiles nothing and measures what a decode step is made of: our own products, our own
events, our own queue. All weights are zeros. Each time is the slope between a short and a long
launch, so that starting threads is not in it, of the fastest of a few: another program can only
make a launch slower.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from event_tensor.derive import derive_events
from event_tensor.graph import Graph
from event_tensor.instantiate import instantiate
from event_tensor.tensors import TensorSpec
from persistent_runtime.cpu.calibration.processor import last_level_cache_bytes
from persistent_runtime.cpu.cores import available_cores
from persistent_runtime.cpu.launch import CpuKernel
from persistent_runtime.formats import Array, stored_bytes
from persistent_runtime.function_table import Variant
from persistent_runtime.functions.dense import norm_linear
from persistent_runtime.launch.memory import Buffers, allocate
from persistent_runtime.rows.encode import ArgumentEncoder, encode_schedule
from persistent_runtime.rows.segment import Segment
from scheduling.policies import POLICIES
from scheduling.target import Target, generic_cpu

LONG_S = 3e-3  # what the long launch of a slope takes at least: threads start in a tenth of it
ROUNDS = 4
FIRST_LAUNCHES, FIRST_STEPS = 4, 400  # of about a hundredth of a second
QUIET_SHARE = 0.85  # of its workers' time that a launch must have had the processor: they spin,
SPIN_LIMIT = 1 << 40  # and never sleep, which would look as if others had it
TIMEOUT_S = 5.0
WIDE, NARROW = 1024, 256  # in_features of products that stream weights, and of short tasks
STREAM_TILE_BYTES = 1 << 19
LEAST_STREAM_BYTES, MOST_STREAM_BYTES = 64 << 20, 256 << 20
MANY_ROWS = 64  # of a tile that arithmetic bounds
LAYERS, TASKS, COLUMNS = 24, 4, 16  # of short tasks: layers, per worker and layer, their columns


@dataclass(frozen=True, slots=True)
class Rates:
    """Of so many workers. bandwidth_gb_s, cache_gb_s, gflops: of all together, reading weights from
    memory, from their caches, and in tiles of many rows; worker_gb_s: from memory, by one alone."""

    bandwidth_gb_s: float
    worker_gb_s: float
    cache_gb_s: float
    gflops: float
    task_us: float
    dependency_us: float
    pop_us: float


@contextmanager
def spinning(*kernels: CpuKernel) -> Iterator[None]:
    limits = [kernel.spin_limit for kernel in kernels]
    for kernel in kernels:
        kernel.spin_limit = SPIN_LIMIT
    try:
        yield
    finally:
        for kernel, limit in zip(kernels, limits, strict=True):
            kernel.spin_limit = limit


def measure(kernel: CpuKernel, product: Variant) -> Rates | None:
    """None where other programs had the processor all the time.

    product: the kernel's `norm_linear` for the weights that count. Takes about half a second, or a
    sixth where others have cores. Raises MemoryError or OSError where there is no room
    for the weights."""
    workers = kernel.num_workers
    alone = CpuKernel(kernel.kinds, 1)
    row_bytes = stored_bytes((WIDE,), product.format("weight"))
    in_memory, tile = stream_bytes() // row_bytes, STREAM_TILE_BYTES // row_bytes
    in_cache = max(last_level_cache_bytes() // 4, workers * STREAM_TILE_BYTES) // row_bytes
    weight = weights(product, in_memory)
    columns = workers * TASKS * COLUMNS

    def streams(kernel: CpuKernel, columns: int, rows: int = 1) -> Case:
        return Case(kernel, product_graph(product, columns, tile, rows), weight)

    def layers(tasks: int, policy: str = "round_robin", chained: bool = True) -> Case:
        graph = layers_graph(product, columns, columns // (workers * tasks), chained)
        return Case(kernel, graph, weight.reshape(-1, NARROW), policy)

    cached = {
        "few": layers(1), "many": layers(TASKS), "queued": layers(TASKS, "dynamic"),
        "apart": layers(1, chained=False), "cache": streams(kernel, in_cache),
        "rows": streams(kernel, workers * tile, MANY_ROWS)}
    streamed = {"memory": streams(kernel, in_memory), "alone": streams(alone, in_memory)}
    with spinning(kernel, alone):
        if not has_cores(cached["few"]):
            return None
        take_turns(cached.values(), ROUNDS)
        take_turns(streamed.values(), rounds=0)  # behind those whose caches they would empty
    cases = cached | streamed
    if min(case.share for case in cases.values()) < QUIET_SHARE:
        return None
    us = {name: case.step_us for name, case in cases.items()}
    few, many, queued, apart = (us[name] / LAYERS for name in ("few", "many", "queued", "apart"))
    return Rates(
        bandwidth_gb_s=in_memory * row_bytes / us["memory"] / 1e3,
        worker_gb_s=in_memory * row_bytes / us["alone"] / 1e3,
        cache_gb_s=in_cache * row_bytes / us["cache"] / 1e3,
        gflops=2 * MANY_ROWS * workers * tile * WIDE / us["rows"] / 1e3,
        task_us=(many - few) / (TASKS - 1), dependency_us=few - apart,
        pop_us=(queued - many) / TASKS)  # a push is paid for by the pop that it makes possible


def has_cores(case: Case) -> bool:
    """Whether the workers get a core each. The system needs a few launches to spread them."""
    for _ in range(FIRST_LAUNCHES):
        case.seconds(FIRST_STEPS)
        if case.share >= QUIET_SHARE:
            return True
    return False


def take_turns(cases: Collection[Case], rounds: int) -> None:
    """What disturbs for a while disturbs a round or two of each, and the fastest counts."""
    for case in cases:
        case.choose_steps()
    for _ in range(rounds):
        for case in cases:
            case.run()


def stream_bytes() -> int:
    """More than the caches hold, so that every launch reads from memory."""
    return min(max(3 * last_level_cache_bytes(), LEAST_STREAM_BYTES), MOST_STREAM_BYTES)


def weights(product: Variant, columns: int) -> Array:
    """[columns, WIDE] zeros in memory of their own: untouched pages would all be the same one."""
    array = allocate((columns, WIDE), product.format("weight"))
    with ThreadPoolExecutor(available_cores()) as pool:  # pages that a thread touches lie near it
        list(pool.map(lambda part: part.fill(0), np.array_split(array, available_cores())))
    return array


def product_graph(product: Variant, columns: int, tile_n: int, rows: int) -> Graph:
    """One product of so many rows, in tiles that wait for nothing."""
    graph = Graph("product")
    _add_product(graph, product, TensorSpec("x", (rows, WIDE)), TensorSpec("out", (rows, columns)),
                 tile_n, columns, WIDE)
    return graph


def layers_graph(product: Variant, columns: int, tile_n: int, chained: bool) -> Graph:
    """LAYERS products of one row, each with weights of its own. If chained, a product reads the
    first NARROW elements of what the one before has written, and waits for all of it."""
    graph = Graph("layers")
    x = TensorSpec("x", (1, NARROW))
    for layer in range(LAYERS):
        out = TensorSpec(f"out{layer}", (1, max(columns, NARROW)))
        _add_product(graph, product, x, out, tile_n, columns, NARROW)
        x = out if chained else x
    return graph


def _add_product(graph: Graph, product: Variant, x: TensorSpec, out: TensorSpec, tile_n: int,
                 columns: int, in_features: int) -> None:
    weight = TensorSpec(f"weight of {out.name}", (columns, in_features), product.format("weight"),
                        "weight")
    norm = TensorSpec("norm", (in_features,), product.format("norm_weight"))
    rows = x.shape[0]
    graph.call_device(norm_linear, args=[x, norm, weight, None, out],
                      tile_num=(1, -(-columns // tile_n)), parameters={
                          "tile_m": rows, "tile_n": tile_n, "in_features": in_features,
                          "row_bytes": stored_bytes((in_features,), weight.dtype), "rows": rows,
                          "eps": 1e-6, "norm_offset": 0.0})


class Case:
    """A graph on a kernel, with its weights. Nothing proves these few schedules: round-robin keeps
    program order, and the queue follows the events that are derived."""

    def __init__(self, kernel: CpuKernel, graph: Graph, weight: Array,
                 policy: str = "round_robin") -> None:
        self._kernel, self._best, self.share = kernel, (0.0, 0.0), 0.0
        graph = derive_events(graph)
        target: Target = generic_cpu(kernel.num_workers)
        schedule = POLICIES[policy](instantiate(graph, {}), target)
        self._arguments = ArgumentEncoder(graph)
        self._encoded = encode_schedule(schedule, kernel.kinds, self._arguments)
        self._buffers = Buffers()
        first = 0
        for spec in graph.tensors():
            columns, *_ = shape = tuple(int(d.evaluate({})) for d in spec.shape)
            if spec.role == "weight":
                self._buffers.bind(spec, weight[first:first + columns])
                first += columns
            else:
                self._buffers.allocate(spec, shape)

    def seconds(self, steps: int) -> float:
        """Of one launch, from the host's call to its end. share: the largest part of the workers'
        time that a launch of LONG_S or more has had the processor."""
        segment = Segment(self._encoded, self._arguments.encode({}, self._buffers.addresses),
                          self._buffers, {}, steps=steps)
        begin, begin_cpu = time.perf_counter(), time.process_time()
        self._kernel.launch([segment], timeout_s=TIMEOUT_S).wait(poll_s=None)
        seconds = time.perf_counter() - begin
        if seconds >= LONG_S:
            of_all = (time.process_time() - begin_cpu) / (seconds * self._kernel.num_workers)
            self.share = max(self.share, of_all)
        return seconds

    def choose_steps(self) -> None:
        """So many that the long launch takes about LONG_S; so few that it takes long anyway are
        not set against a shorter one."""
        self._long, self._short = 3, 0
        while (seconds := min(self.seconds(self._long) for _ in range(4))) < LONG_S:
            self._long = int(self._long * min(1.2 * LONG_S / seconds, 64)) + 1
            self._short = max(self._long // 8, 1)
        self._best = math.inf if self._short else 0.0, math.inf
        self.run()

    def run(self) -> None:
        """Both launches once more; the fastest of each counts."""
        short, long = self._best
        self._best = (min(short, self.seconds(self._short)) if self._short else 0.0,
                      min(long, self.seconds(self._long)))

    @property
    def step_us(self) -> float:
        short, long = self._best
        return max((long - short) / (self._long - self._short) * 1e6, 1e-3)
