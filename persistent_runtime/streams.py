"""Which weights reach a worker through its ring in shared memory, and in which pieces.

Weights depend on no event, and the tile of a matrix product reads whole rows that follow one
another in memory. So the weights of a worker's tasks that have one row of activations, in the order
of its rows, are one stream of bytes that starts over with every step. It is cut into pieces of at
most PIECE_BYTES; the GPU's ring (gpu/ring.py) holds the next few of them, whatever the worker is
at.

In shared memory a piece is up to PIECE_LINES *lines*: 16 bytes for each of 256 threads. Every
`period.lines` lines hold `period.rows` rows of the matrix exactly, so that a thread meets the same
elements of the activations again and again and keeps them in registers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from event_tensor.graph import Call, Graph
from event_tensor.symbols import as_expr
from event_tensor.task_table import IntArray, TaskTable
from persistent_runtime import layout

LINE_BYTES = 16 * 256
PIECE_LINES = 4
PIECE_BYTES = PIECE_LINES * LINE_BYTES
WARP_BYTES = 16 * 32  # of a line: rows begin and end at multiples of this
ELEMENT_BYTES = 2
MAX_LINES = 2 * PIECE_LINES  # of a period: each costs a thread eight registers
# Partial sums that a task leaves in shared memory until all are there: one for each warp and row,
# or for WARP_BYTES of a matrix where a line holds several rows.
SUMS = 4096
WARPS = LINE_BYTES // WARP_BYTES
# The matrices that a device function's tile streams, whose pieces alternate.
MATRICES = {"norm_linear": ("weight",), "linear_residual": ("weight",), "norm_lm_head": ("weight",),
            "norm_gate_up_silu": ("gate_weight", "up_weight")}


@dataclass(frozen=True, slots=True)
class Period:
    """How the rows of a matrix lie: `lines` lines hold `rows` rows of `in_features` elements."""

    in_features: int
    lines: int
    rows: int

    @property
    def piece_lines(self) -> tuple[int, ...]:
        """Lines of the pieces that are used up together: one piece of whole periods, or two that
        make one period."""
        if self.lines <= PIECE_LINES:
            return (PIECE_LINES // self.lines * self.lines,)
        return (PIECE_LINES, self.lines - PIECE_LINES)

    @property
    def lines_per_sum(self) -> int:
        """Lines that a thread adds up: those of one row, or one where a line holds several."""
        return self.lines if self.rows == 1 else 1

    @property
    def sums_per_round(self) -> int:
        """Sums that each warp leaves of a matrix for the pieces that are used up together."""
        return sum(self.piece_lines) // self.lines_per_sum

    @property
    def sums_per_row(self) -> int:
        return WARPS if self.rows == 1 else self.in_features * ELEMENT_BYTES // WARP_BYTES

    def rounds(self, tile_n: int) -> int:
        """That a tile of so many rows takes."""
        return math.ceil(tile_n * self.lines / (self.rows * sum(self.piece_lines)))


def period_of(in_features: int) -> Period:
    row_bytes = in_features * ELEMENT_BYTES
    common = math.gcd(row_bytes, LINE_BYTES)
    return Period(in_features, row_bytes // common, LINE_BYTES // common)


def can_stream(calls: Iterable[Call]) -> bool:
    """Whether the ring serves all these calls of one device function: all or none, because its
    body holds either what consumes the ring or what reads weights by itself."""
    return all(_can_stream(call) for call in calls)


def _can_stream(call: Call) -> bool:
    if call.function.name not in MATRICES or _parameter(call, "weight_bytes") != ELEMENT_BYTES:
        return False
    in_features, tile_n = _parameter(call, "in_features"), _parameter(call, "tile_n")
    period, matrices = period_of(in_features), len(MATRICES[call.function.name])
    alternates = matrices > 1 or period.rows > 1
    sums = (period.rounds(tile_n) * period.sums_per_round + 1) * WARPS * matrices
    return (in_features * ELEMENT_BYTES % WARP_BYTES == 0
            and period.lines <= (PIECE_LINES if alternates else MAX_LINES) and sums <= SUMS)


def streamed_calls(graph: Graph, bindings: Mapping[str, int]) -> tuple[int, ...]:
    """Indices of the calls whose weights go through the ring in steps of these sizes."""
    calls: dict[str, list[Call]] = {}
    for call in graph.calls:
        if call.function.name in MATRICES:
            calls.setdefault(call.function.name, []).append(call)
    return tuple(call.index for of_function in calls.values() if can_stream(of_function)
                 for call in of_function
                 if int(as_expr(call.parameters["rows"]).evaluate(bindings)) == 1)


def encode_streams(table: TaskTable, orders: Sequence[IntArray], argument_begin: IntArray,
                   calls: Sequence[int]) -> tuple[IntArray, IntArray, IntArray]:
    """(pieces [pieces, STREAM_WORDS], range of each worker [workers + 1], of each row its first
    piece within its worker's and how many it has [rows, 2]). calls: from `streamed_calls`."""
    parts = [np.zeros((0, layout.STREAM_WORDS), np.int64)]
    worker_begin, rows = [0], []
    matrices = {call: _Matrices.of(table.graph.calls[call], int(argument_begin[call]))
                for call in calls}
    for order in orders:
        begin = 0
        for task in order.tolist():
            found = matrices.get(int(table.call[task]))
            count = 0
            if found is not None:
                parts.append(found.pieces(int(table.tile[task, found.axis])))
                count = len(parts[-1])
            rows.append((begin if count else 0, count))
            begin += count
        worker_begin.append(worker_begin[-1] + begin)
    return (np.concatenate(parts), np.array(worker_begin, np.int64),
            np.array(rows, np.int64).reshape(-1, 2))


@dataclass(frozen=True, slots=True)
class _Matrices:
    """What a call's tiles read: where the argument table has the matrices' addresses, the tile's
    axis, bytes of a row, rows of a tile, rows of the matrix."""

    words: tuple[int, ...]
    axis: int
    row_bytes: int
    tile_rows: int
    rows: int
    period: Period

    @classmethod
    def of(cls, call: Call, argument_begin: int) -> _Matrices:
        names = [operand.name for operand in call.function.operands]
        places = [names.index(name) for name in MATRICES[call.function.name]]
        weight = call.args[places[0]]
        assert weight is not None
        in_features = _parameter(call, "in_features")
        return cls(tuple(argument_begin + place * layout.OPERAND_WORDS for place in places),
                   call.function.axes.index("j"), in_features * ELEMENT_BYTES,
                   _parameter(call, "tile_n"), int(weight.shape[0].evaluate({})),
                   period_of(in_features))

    def pieces(self, tile: int) -> IntArray:
        """Of one tile, in the order in which it uses them up: [pieces, STREAM_WORDS]."""
        first = tile * self.tile_rows
        size = (min(first + self.tile_rows, self.rows) - first) * self.row_bytes
        lines = self.period.piece_lines
        used_up = sum(lines) * LINE_BYTES
        starts = np.arange(0, size, used_up)[:, None] + np.cumsum([0, *lines[:-1]]) * LINE_BYTES
        ends = np.minimum(starts + np.array(lines) * LINE_BYTES, size)
        place = ((first * self.row_bytes + starts) // WARP_BYTES * layout.STREAM_LENGTHS
                 + (ends - starts) // WARP_BYTES)
        shape = (len(starts), len(self.words), len(lines))
        found = np.zeros((*shape, layout.STREAM_WORDS), np.int64)
        found[..., layout.STREAM_TENSOR] = np.array(self.words)[:, None]
        found[..., layout.STREAM_PLACE] = place[:, None, :]
        return found.reshape(-1, layout.STREAM_WORDS)


def _parameter(call: Call, name: str) -> int:
    return int(as_expr(call.parameters[name]).evaluate({}))
