"""Which weights reach a worker through its ring in shared memory, and in which pieces.

Weights depend on no event, and the tile of a matrix product reads whole rows that follow one
another in memory. So the weights of a worker's tasks that have one row of activations, in the order
of its rows, are one stream of bytes that starts over with every step. It is cut into pieces of at
most PIECE_BYTES; the ring (ring.py) holds the next few of them, whatever the worker is at.

In shared memory a piece is up to PIECE_LINES *lines*: 16 bytes for each of 256 threads. Every
`period.lines` lines hold `period.rows` rows of the matrix exactly, so that a thread meets the same
elements of the activations again and again and keeps them in registers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from event_tensor.graph import Call
from event_tensor.task_table import IntArray, TaskTable
from persistent_runtime.formats import format_of
from persistent_runtime.rows import layout
from persistent_runtime.rows.encode import ArgumentEncoder, EncodedSchedule

LINE_BYTES = 16 * 256
PIECE_LINES = 4
PIECE_BYTES = PIECE_LINES * LINE_BYTES
WARP_BYTES = 16 * 32  # of a line: rows begin and end at multiples of this
ELEMENT_BYTES = 2  # the ring's readers take pairs of elements apart (gpu/ring/streamed.py)
MAX_LINES = 2 * PIECE_LINES  # of a period: each costs a thread eight registers
# Partial sums that a task leaves in shared memory until all are there: one for each warp and row,
# or for WARP_BYTES of a matrix where a line holds several rows.
SUMS = 4096
WARPS = LINE_BYTES // WARP_BYTES
# The matrices that a device function's tile streams, whose pieces alternate.
MATRICES = {"norm_linear": ("weight",), "linear_residual": ("weight",), "norm_lm_head": ("weight",),
            "norm_gate_up": ("gate_weight", "up_weight")}


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
    if not _has_elements_of(ELEMENT_BYTES, call):
        return False
    in_features, tile_n = _parameter(call, "in_features"), _parameter(call, "tile_n")
    period, matrices = period_of(in_features), len(MATRICES[call.function.name])
    alternates = matrices > 1 or period.rows > 1
    sums = (period.rounds(tile_n) * period.sums_per_round + 1) * WARPS * matrices
    return (in_features * ELEMENT_BYTES % WARP_BYTES == 0
            and period.lines <= (PIECE_LINES if alternates else MAX_LINES) and sums <= SUMS)


def _has_elements_of(size: int, call: Call) -> bool:
    """Whether all matrices of a call have one format, of single elements of so many bytes."""
    names = MATRICES.get(call.function.name, ())
    stored = [format_of(tensor.dtype)
              for operand, tensor in zip(call.function.operands, call.args, strict=True)
              if operand.name in names and tensor is not None]
    return len(set(stored)) == 1 and stored[0].is_elementwise and stored[0].block_bytes == size


def streamed_calls(calls: Iterable[Call], bindings: Mapping[str, int]) -> tuple[int, ...]:
    """Indices of the calls whose weights go through the ring in steps of these sizes. calls: those
    whose bodies were compiled for it."""
    return tuple(sorted(call.index for call in calls
                        if int(call.sizes["rows"].evaluate(bindings)) == 1))


def with_streams(encoded: EncodedSchedule, arguments: ArgumentEncoder, calls: Sequence[int]
                 ) -> EncodedSchedule:
    """The schedule with the stream list, in which each row of these calls finds its pieces."""
    schedule = encoded.schedule
    stream, begin, of_rows = _encode_streams(schedule.table, schedule.orders, arguments.begin,
                                             calls)
    rows = encoded.rows.copy()
    rows[:len(of_rows), [layout.STREAM_FIRST, layout.STREAM_COUNT]] = of_rows
    return replace(encoded, rows=rows, of_backend={layout.STREAM: stream.astype(np.int32),
                                                   layout.STREAM_BEGIN: begin})


def _encode_streams(table: TaskTable, orders: Sequence[IntArray], argument_begin: IntArray,
                   calls: Sequence[int]) -> tuple[IntArray, IntArray, IntArray]:
    """(pieces [pieces, STREAM_WORDS], range of each worker [workers + 1], of each row its first
    piece within its worker's and how many it has [rows, 2]). calls: from `streamed_calls`."""
    tasks = np.concatenate([np.zeros(0, np.int64), *orders]).astype(np.int64)
    patterns = [np.zeros((0, layout.STREAM_WORDS), np.int64)]  # pieces of a first tile, from 0 on
    begin, count, shift = (np.zeros(len(tasks), np.int64) for _ in range(3))
    known = 0
    for index in calls:
        call = table.graph.calls[index]
        of_call = table.call[tasks] == index
        tile = table.tile[tasks, call.function.axes.index("j")]
        matrices = _Matrices.of(call, int(argument_begin[index]))
        last = (matrices.rows - 1) // matrices.tile_rows
        for rows, here in ((matrices.tile_rows, of_call & (tile < last)),
                           (matrices.rows - last * matrices.tile_rows, of_call & (tile == last))):
            patterns.append(matrices.pieces(rows))
            begin[here], count[here] = known, len(patterns[-1])
            shift[here] = (tile[here] * matrices.tile_rows * matrices.row_bytes
                           // layout.STREAM_UNIT * layout.STREAM_LENGTHS)
            known += len(patterns[-1])
    ends = np.cumsum(count)
    pieces = np.concatenate(patterns)[np.repeat(begin - ends + count, count)
                                      + np.arange(count.sum())]
    pieces[:, layout.STREAM_PLACE] += np.repeat(shift, count)
    row_begin = np.cumsum([0, *map(len, orders)])
    worker_begin = np.concatenate([[0], ends])[row_begin]
    first = ends - count - np.repeat(worker_begin[:-1], np.diff(row_begin))
    return pieces, worker_begin, np.stack([np.where(count > 0, first, 0), count], axis=1)


@dataclass(frozen=True, slots=True)
class _Matrices:
    """What a call's tiles read. words: where the argument table has the matrices' addresses;
    rows: of a matrix."""

    words: tuple[int, ...]
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
                   in_features * ELEMENT_BYTES, _parameter(call, "tile_n"),
                   int(weight.shape[0].evaluate({})), period_of(in_features))

    def pieces(self, rows: int) -> IntArray:
        """Of a tile of so many rows, in the order in which it uses them up, their places counted
        from the tile's: [pieces, STREAM_WORDS]."""
        size, lines = rows * self.row_bytes, self.period.piece_lines
        used_up = sum(lines) * LINE_BYTES
        starts = np.arange(0, size, used_up)[:, None] + np.cumsum([0, *lines[:-1]]) * LINE_BYTES
        ends = np.minimum(starts + np.array(lines) * LINE_BYTES, size)
        found = np.zeros((len(starts), len(self.words), len(lines), layout.STREAM_WORDS), np.int64)
        found[..., layout.STREAM_TENSOR] = np.array(self.words)[:, None]
        found[..., layout.STREAM_PLACE] = (
            starts // layout.STREAM_UNIT * layout.STREAM_LENGTHS
            + (ends - starts) // layout.STREAM_UNIT)[:, None, :]
        return found.reshape(-1, layout.STREAM_WORDS)


def _parameter(call: Call, name: str) -> int:
    return int(call.sizes[name].evaluate({}))
