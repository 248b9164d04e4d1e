"""The paper's running example: row sums in two stages, each final sum waiting for its four parts.

Device functions are declared and given bodies here, outside the library; the megakernel is
compiled once and runs for several sizes n. The second graph leaves its edges out and has them
derived from what the tiles read and write: the same events.
"""

from __future__ import annotations

import argparse

import numpy as np

from event_tensor.derive import derive_events
from event_tensor.device_function import WHOLE, DeviceFunction, Tile, reads, writes
from event_tensor.graph import Graph
from event_tensor.instantiate import instantiate
from event_tensor.printer import format_graph
from event_tensor.symbols import Symbol
from event_tensor.tensors import EventTensor, TensorSpec
from persistent_runtime.cpu.bodies.arguments import FLOAT32, operand, record_offsets
from persistent_runtime.cpu.compile.registry import cpu_body
from persistent_runtime.megakernel import Megakernel

ROWS, COLUMNS, PARTS = 32, 128, 4  # rows of a tile, columns of A, partial sums of a row

partial_sum = DeviceFunction(
    "partial_sum", ("i", "j"),
    (reads("A", Tile("i", ROWS), Tile("j", COLUMNS // PARTS)),
     writes("B", Tile("i", ROWS), Tile("j", 1))))
final_sum = DeviceFunction(
    "final_sum", ("i",), (reads("B", Tile("i", ROWS), WHOLE), writes("C", Tile("i", ROWS))))

PARTIAL, FINAL = record_offsets(partial_sum), record_offsets(final_sum)


@cpu_body(partial_sum)
def partial_sum_body(arguments, tile, step, scratch, formats):  # noqa: ANN001, ANN201
    a, b = operand(arguments, PARTIAL.A, FLOAT32), operand(arguments, PARTIAL.B, FLOAT32)
    width = COLUMNS // PARTS
    for row in range(tile[0] * ROWS, (tile[0] + 1) * ROWS):
        total = FLOAT32
        for column in range(tile[1] * width, (tile[1] + 1) * width):
            total += a[row * COLUMNS + column]
        b[row * PARTS + tile[1]] = total


@cpu_body(final_sum)
def final_sum_body(arguments, tile, step, scratch, formats):  # noqa: ANN001, ANN201
    b, c = operand(arguments, FINAL.B, FLOAT32), operand(arguments, FINAL.C, FLOAT32)
    for row in range(tile[0] * ROWS, (tile[0] + 1) * ROWS):
        total = FLOAT32
        for part in range(PARTS):
            total += b[row * PARTS + part]
        c[row] = total


n = Symbol("n")
A, B, C = TensorSpec("A", (ROWS * n, COLUMNS)), TensorSpec("B", (ROWS * n, PARTS)), TensorSpec(
    "C", (ROWS * n,))


def written_graph() -> Graph:
    """The graph with its event tensor and edges written out, as in the paper."""
    graph = Graph("split_row_sum")
    E = EventTensor(shape=(n,), wait_count=PARTS)
    graph.call_device(partial_sum, tile_num=(n, PARTS), args=[A, B], out_edges={E: "ij->i"})
    graph.call_device(final_sum, tile_num=(n,), args=[B, C], in_edges={E: "i->i"})
    return graph


def derived_graph() -> Graph:
    """The same calls without a word about events."""
    graph = Graph("split_row_sum")
    graph.call_device(partial_sum, args=[A, B])
    graph.call_device(final_sum, args=[B, C])
    return derive_events(graph)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 3, 16, 100])
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    graphs = {"written": written_graph(), "derived": derived_graph()}
    print(format_graph(graphs["derived"]))
    kernels = {name: Megakernel(graph, workers=options.workers) for name, graph in graphs.items()}
    for size in options.sizes:
        tables = [instantiate(graph, {"n": size}) for graph in graphs.values()]
        same = all(np.array_equal(getattr(tables[0], field), getattr(tables[1], field))
                   for field in ("event_count", "wait_event", "notify_event"))
        a = np.random.default_rng(size).standard_normal((ROWS * size, COLUMNS), np.float32)
        for name, kernel in kernels.items():
            c = np.zeros(ROWS * size, np.float32)
            kernel.run({"n": size}, {"A": a, "B": np.zeros((ROWS * size, PARTS), np.float32),
                                     "C": c})
            error = float(np.abs(c - a.sum(axis=1, dtype=np.float64)).max())
            print(f"n={size:4d} {name}: {tables[0].num_tasks} tasks, same events: {same}, "
                  f"largest error {error:.1e}, compilations {kernel.compilations}")


if __name__ == "__main__":
    main()
