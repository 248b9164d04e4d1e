"""Random graphs without edges: tiles that split, merge or do not fit, reuse, updates, part covers.

`random_graph(seed)` and the hypothesis strategy `graphs()` share one generator. The tiles of one
call never write the same element, so every graph has a program order that must be kept.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from event_tensor.device_function import (
    WHOLE,
    DeviceFunction,
    Operand,
    Region,
    Span,
    Tile,
    reads,
    updates,
    writes,
)
from event_tensor.graph import Graph
from event_tensor.symbols import Constant, Expr, Symbol, ceil_div, minimum
from event_tensor.tensors import TensorSpec
from scheduling.schedule import Schedule, queue_capacity

SIZES = (1, 2, 3, 4, 6, 8, 12)
MAX_TILES = 24  # of one call
MAX_TASKS = 64  # of one graph, for every binding

Bindings = Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RandomGraph:
    graph: Graph  # no edges
    bindings: tuple[dict[str, int], ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """A call before it is appended."""

    operands: tuple[Operand, ...]
    args: tuple[TensorSpec, ...]
    grid: dict[str, Expr]  # axis → tiles


def random_graph(seed: int) -> RandomGraph:
    return build_graph(random.Random(seed))


def queue_some_calls(schedule: Schedule, rng: random.Random) -> Schedule:
    """The schedule with every task of some random calls in the queue."""
    table = schedule.table
    calls = [call for call in range(len(table.graph.calls)) if rng.random() < 0.5]
    is_queued = np.isin(table.call, calls)
    queued = np.flatnonzero(is_queued)
    return replace(schedule, orders=tuple(o[~is_queued[o]] for o in schedule.orders),
                   policy="mixed", queued=queued, queue_capacity=queue_capacity(len(queued)))


def graphs() -> st.SearchStrategy[RandomGraph]:
    return st.randoms(use_true_random=False).map(build_graph)


def build_graph(rng: random.Random) -> RandomGraph:
    """2–8 calls over 1–5 tensors of rank 1–2 whose sizes follow n ≥ 1 and m ≥ 0 or 1."""
    n, m = Symbol("n"), Symbol("m", at_least=rng.choice((0, 1)))
    bindings = [{"n": 1, "m": m.at_least}, {"n": 2, "m": 3},
                {"n": rng.randint(3, 4), "m": rng.randint(1, 5)}]
    dims = (n, m, 4 * n, 6 * m, n + m, Constant(12), Constant(8))
    tensors = [
        TensorSpec(f"T{k}", tuple(rng.choice(dims) for _ in range(rng.choice((1, 1, 2)))), "int32")
        for k in range(rng.randint(1, 5))]
    graph = Graph("random")
    budget = [MAX_TASKS] * len(bindings)
    calls = rng.randint(2, 8)
    for _ in range(60):
        if len(graph.calls) == calls:
            break
        plan = _plan_call(rng, tensors, bindings)
        tasks = [_product(plan.grid.values(), b) for b in bindings]
        if max(tasks) > MAX_TILES or any(t > left for t, left in zip(tasks, budget, strict=True)):
            continue
        budget = [left - t for t, left in zip(tasks, budget, strict=True)]
        function = DeviceFunction(f"f{len(graph.calls)}", tuple(plan.grid), plan.operands)
        graph.call_device(function, args=plan.args, tile_num=tuple(plan.grid.values()))
    return RandomGraph(graph, tuple(bindings))


def _plan_call(rng: random.Random, tensors: Sequence[TensorSpec], bindings: Sequence[Bindings]
               ) -> _Plan:
    target = rng.choice(tensors)
    grid: dict[str, Expr] = {}
    region = _write_region(rng, target, grid)
    writer = updates if rng.random() < 0.4 else writes
    operands, args = [writer("out0", *region)], [target]
    others = [t for t in tensors if t is not target]
    if others and rng.random() < 0.25:
        second = rng.choice(others)
        second_region = _cover_axes(rng, second, grid, bindings)
        if second_region is not None:
            operands.append(writes("out1", *second_region))
            args.append(second)
            others.remove(second)
    if rng.random() < 0.1:  # one task may name a tensor twice
        operands.append(reads("in0", *region))
        args.append(target)
    else:
        for k, source in enumerate(rng.sample(others, min(len(others), rng.randint(0, 2)))):
            operands.append(reads(f"in{k}", *_read_region(rng, source, grid, bindings)))
            args.append(source)
    return _Plan(tuple(operands), tuple(args), grid)


def _write_region(rng: random.Random, tensor: TensorSpec, grid: dict[str, Expr]
                  ) -> tuple[Region, ...]:
    """A region whose tiles are disjoint; fills `grid` with its axes."""
    if len(tensor.shape) == 1 and rng.random() < 0.15:  # two axes share one dimension
        size, inner = rng.choice((1, 2, 3)), rng.choice((2, 3))
        grid |= {"i": ceil_div(tensor.shape[0], size * inner), "j": Constant(inner)}
        return (Span((Symbol("i") * inner + Symbol("j")) * size, size),)
    region: list[Region] = []
    for axis, dim in zip("ij", tensor.shape, strict=False):
        kind = rng.random()
        if kind < 0.75:
            size = rng.choice(SIZES)
            grid[axis] = _tiles(rng, ceil_div(dim, size))
            region.append(Tile(axis, size))
        else:
            region.append(WHOLE if kind < 0.9 else Span(dim // 2, dim - dim // 2))
    if not grid or (len(grid) == 1 and rng.random() < 0.1):
        # an axis that no write tiles: one tile, or perhaps none
        grid["k"] = Constant(1) if rng.random() < 0.7 else minimum(Symbol("m", at_least=0), 1)
    return tuple(region)


def _tiles(rng: random.Random, all_tiles: Expr) -> Expr:
    """All tiles of a dimension, or only some of them."""
    kind = rng.random()
    if kind < 0.8:
        return all_tiles
    return minimum(all_tiles, 2) if kind < 0.9 else ceil_div(all_tiles, 2)


def _fitting_sizes(tiles: Expr, dim: Expr, bindings: Sequence[Bindings]) -> list[int]:
    """Tile sizes for which `tiles` tiles begin inside the dimension."""
    return [size for size in SIZES
            if all(tiles.evaluate(b) <= -(-dim.evaluate(b) // size) for b in bindings)]


def _cover_axes(rng: random.Random, tensor: TensorSpec, grid: dict[str, Expr],
                bindings: Sequence[Bindings]) -> tuple[Region, ...] | None:
    """A region in which every axis of the call tiles one dimension; None where none fits."""
    axes = [axis for axis in grid if axis != "k"]
    if len(axes) > len(tensor.shape):
        return None
    chosen: list[str | None] = [*axes, *[None] * (len(tensor.shape) - len(axes))]
    rng.shuffle(chosen)
    region: list[Region] = []
    for axis, dim in zip(chosen, tensor.shape, strict=True):
        if axis is None:
            region.append(WHOLE)
            continue
        sizes = _fitting_sizes(grid[axis], dim, bindings)
        if not sizes:
            return None
        region.append(Tile(axis, rng.choice(sizes)))
    return tuple(region)


def _read_region(rng: random.Random, tensor: TensorSpec, grid: dict[str, Expr],
                 bindings: Sequence[Bindings]) -> tuple[Region, ...]:
    region: list[Region] = []
    for dim in tensor.shape:
        axis, kind = rng.choice(list(grid)), rng.random()
        sizes = _fitting_sizes(grid[axis], dim, bindings)
        if kind < 0.6 and sizes:
            region.append(Tile(axis, rng.choice(sizes)))
        elif kind < 0.7 and sizes:  # a tile and its neighbour's first element
            size = rng.choice(sizes)
            region.append(Span(Symbol(axis) * size, size + 1))
        elif kind < 0.78:
            region.append(Span(0, ceil_div(dim, 2)))
        else:
            region.append(WHOLE)
    return tuple(region)


def _product(tiles: Sequence[Expr], bindings: Bindings) -> int:
    product = 1
    for count in tiles:
        product *= int(count.evaluate(bindings))
    return product
