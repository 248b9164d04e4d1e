"""A mixture of experts in integers: the shape of the real block, with bodies that are exact.

`pick` takes this step's expert choices from a table and lays the chosen rows out in tiles;
`group` copies a row to its slot; `up` and `down` work on tiles of one expert; `merge` adds up what
the experts made of a row. Each layer has its own choices, and the buffers are shared.
"""

from __future__ import annotations

import numpy as np

from event_tensor.device_function import (
    WHOLE,
    DeviceFunction,
    Rows,
    Tile,
    reads,
    updates,
    writes,
)
from event_tensor.edges import span, trigger
from event_tensor.graph import Graph
from event_tensor.symbols import Symbol, minimum
from event_tensor.tensors import RUNTIME, EventTensor, TensorSpec
from persistent_runtime.cpu.bodies.arguments import INT32, dim, operand, record_offsets
from persistent_runtime.cpu.compile.registry import cpu_body
from persistent_runtime.rows import layout

EXPERTS, TILE_M, WIDTH, COLUMNS, MASK = 5, 2, 6, 3, 0xFFFFF
n, k = Symbol("n"), Symbol("k")
choices = n * k
active = minimum(EXPERTS, choices)
tiles = active + (choices - active) // TILE_M

PICK = DeviceFunction("moe_pick", ("z",), (
    reads("x", WHOLE, WHOLE), reads("routes", WHOLE, WHOLE, WHOLE), writes("ids", WHOLE, WHOLE),
    writes("place", WHOLE, WHOLE), writes("counts", WHOLE), writes("indptr", WHOLE),
    writes("tile_rows", WHOLE, WHOLE)), ("layer",))
GROUP = DeviceFunction("moe_group", ("i", "k"), (
    reads("x", Tile("i"), WHOLE), reads("ids", Tile("i"), Tile("k")),
    reads("place", Tile("i"), Tile("k")), writes("grouped", Rows("place", ("i", "k")), WHOLE)))
UP = DeviceFunction("moe_up", ("t", "j"), (
    reads("grouped", Tile("t", TILE_M), WHOLE), reads("tile_rows", Tile("t"), WHOLE),
    writes("inner", Tile("t", TILE_M), Tile("j", COLUMNS))))
DOWN = DeviceFunction("moe_down", ("t", "j"), (
    reads("inner", Tile("t", TILE_M), WHOLE), reads("tile_rows", Tile("t"), WHOLE),
    writes("out", Tile("t", TILE_M), Tile("j", COLUMNS))))
MERGE = DeviceFunction("moe_merge", ("i",), (
    reads("place", Tile("i"), WHOLE), reads("out", Rows("place", ("i",)), WHOLE),
    updates("x", Tile("i"), WHOLE)))


def moe_graph(layers: int = 2) -> Graph:
    """Layers over x [n, WIDTH]; routes [steps, n, k] holds the choices, from layer to layer."""
    graph = Graph("moe")
    x, routes = TensorSpec("x", (n, WIDTH), "int32"), TensorSpec(
        "routes", (Symbol("steps"), n, k), "int32", "control")
    slots = tiles * TILE_M
    grouped, inner, out = (TensorSpec(name, (slots, WIDTH), "int32")
                           for name in ("grouped", "inner", "out"))
    for layer in range(layers):
        ids, place, counts, indptr, rows = (
            TensorSpec(f"{name}{layer}", shape, "int32") for name, shape in (
                ("ids", (n, k)), ("place", (n, k)), ("counts", (EXPERTS,)),
                ("indptr", (EXPERTS + 1,)), ("tile_rows", (tiles, TILE_M))))
        of_expert = EventTensor((EXPERTS,), RUNTIME, f"E_expert{layer}", counts)
        of_tile = EventTensor((tiles,), name=f"E_tile{layer}")
        of_row = EventTensor((n,), k * (WIDTH // COLUMNS), f"E_row{layer}")
        graph.call_device(PICK, tile_num=(1,), parameters={"layer": layer},
                          args=[x, routes, ids, place, counts, indptr, rows])
        graph.call_device(GROUP, args=[x, ids, place, grouped],
                          out_edges={of_expert: lambda i, k, ids=ids: ids[i, k]})
        graph.call_device(UP, args=[grouped, rows, inner], tile_num=(tiles, WIDTH // COLUMNS),
                          in_edges={of_expert: trigger(
                              lambda e, p=indptr: span(p[e], p[e + 1]))},
                          out_edges={of_tile: "tj->t"})
        graph.call_device(DOWN, args=[inner, rows, out], tile_num=(tiles, WIDTH // COLUMNS),
                          in_edges={of_tile: "tj->t"},
                          out_edges={of_row: lambda t, j, rows=rows: rows[t]})
        graph.call_device(MERGE, args=[place, out, x], in_edges={of_row: "i->i"})
    return graph


def route(ids: np.ndarray) -> dict[str, np.ndarray]:
    """What `pick` writes for these choices [n, k]; the choices of one row differ."""
    tokens, top_k = ids.shape
    used = min(EXPERTS, ids.size)
    count = np.bincount(ids.ravel(), minlength=EXPERTS)
    indptr = np.concatenate([[0], np.cumsum(-(-count // TILE_M))])
    place, taken = np.zeros_like(ids), np.zeros(EXPERTS, int)
    rows = np.full((used + (ids.size - used) // TILE_M, TILE_M), -1)
    for i in range(tokens):
        for c in range(top_k):
            expert = ids[i, c]
            slot = indptr[expert] * TILE_M + taken[expert]
            taken[expert] += 1
            place[i, c] = slot
            rows[slot // TILE_M, slot % TILE_M] = i
    return {"ids": ids, "place": place, "counts": count, "indptr": indptr, "tile_rows": rows}


def sample(ids_of_layers) -> dict[str, np.ndarray]:
    """Runtime values of a graph whose layers make these choices."""
    return {f"{name}{layer}": values for layer, ids in enumerate(ids_of_layers)
            for name, values in route(np.asarray(ids)).items()}


def run_reference(x: np.ndarray, routes: np.ndarray, steps: int, layers: int) -> np.ndarray:
    x = x.astype(np.int64)
    for step in range(steps):
        for layer in range(layers):
            ids = routes[(step + layer) % len(routes)]
            made = np.zeros((*ids.shape, WIDTH), np.int64)
            for i, experts in enumerate(ids):
                for c, expert in enumerate(experts):
                    inner = (3 * x[i] + expert) * (np.arange(WIDTH) + 2) & MASK
                    made[i, c] = inner.sum() * (np.arange(WIDTH) + 1) & MASK
            x = x + made.sum(axis=1) & MASK
    return x.astype(np.int32)


_PICK, _GROUP, _UP, _DOWN, _MERGE = map(record_offsets, (PICK, GROUP, UP, DOWN, MERGE))


@cpu_body(PICK)
def moe_pick(arguments, tile, step, scratch, formats):
    steps, rows, top_k = (dim(arguments, _PICK.routes, 0), dim(arguments, _PICK.routes, 1),
                          dim(arguments, _PICK.routes, 2))
    use = (step[layout.STEP_INDEX] + arguments[_PICK.layer]) % steps
    routes = operand(arguments, _PICK.routes, INT32)
    ids, place = operand(arguments, _PICK.ids, INT32), operand(arguments, _PICK.place, INT32)
    counts, indptr = (operand(arguments, _PICK.counts, INT32),
                      operand(arguments, _PICK.indptr, INT32))
    tile_rows = operand(arguments, _PICK.tile_rows, INT32)
    for slot in range(dim(arguments, _PICK.tile_rows, 0) * TILE_M):
        tile_rows[slot] = -1
    indptr[0] = 0
    for expert in range(EXPERTS):
        taken = 0
        for c in range(rows * top_k):
            if routes[use * rows * top_k + c] == expert:
                slot = indptr[expert] * TILE_M + taken
                ids[c] = expert
                place[c] = slot
                tile_rows[slot] = c // top_k
                taken += 1
        counts[expert] = taken
        indptr[expert + 1] = indptr[expert] + (taken + TILE_M - 1) // TILE_M


@cpu_body(GROUP)
def moe_group(arguments, tile, step, scratch, formats):
    choice = tile[0] * dim(arguments, _GROUP.ids, 1) + tile[1]
    x, grouped = operand(arguments, _GROUP.x, INT32), operand(arguments, _GROUP.grouped, INT32)
    slot = operand(arguments, _GROUP.place, INT32)[choice]
    expert = operand(arguments, _GROUP.ids, INT32)[choice]
    for column in range(WIDTH):
        grouped[slot * WIDTH + column] = 3 * x[tile[0] * WIDTH + column] + expert


@cpu_body(UP)
def moe_up(arguments, tile, step, scratch, formats):
    grouped, inner = operand(arguments, _UP.grouped, INT32), operand(arguments, _UP.inner, INT32)
    rows = operand(arguments, _UP.tile_rows, INT32)
    for slot in range(tile[0] * TILE_M, (tile[0] + 1) * TILE_M):
        if rows[slot] >= 0:
            for column in range(tile[1] * COLUMNS, (tile[1] + 1) * COLUMNS):
                inner[slot * WIDTH + column] = (
                    np.int64(grouped[slot * WIDTH + column]) * (column + 2) & MASK)


@cpu_body(DOWN)
def moe_down(arguments, tile, step, scratch, formats):
    inner, out = operand(arguments, _DOWN.inner, INT32), operand(arguments, _DOWN.out, INT32)
    rows = operand(arguments, _DOWN.tile_rows, INT32)
    for slot in range(tile[0] * TILE_M, (tile[0] + 1) * TILE_M):
        if rows[slot] >= 0:
            total = np.int64(0)
            for column in range(WIDTH):
                total += inner[slot * WIDTH + column]
            for column in range(tile[1] * COLUMNS, (tile[1] + 1) * COLUMNS):
                out[slot * WIDTH + column] = total * (column + 1) & MASK


@cpu_body(MERGE)
def moe_merge(arguments, tile, step, scratch, formats):
    x, out = operand(arguments, _MERGE.x, INT32), operand(arguments, _MERGE.out, INT32)
    place = operand(arguments, _MERGE.place, INT32)
    top_k = dim(arguments, _MERGE.place, 1)
    for column in range(WIDTH):
        total = np.int64(x[tile[0] * WIDTH + column])
        for c in range(tile[0] * top_k, (tile[0] + 1) * top_k):
            total += out[place[c] * WIDTH + column]
        x[tile[0] * WIDTH + column] = total & MASK
