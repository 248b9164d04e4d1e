"""Which weights a worker asks for ahead of time: weights depend on no event.

A worker's weights, in the order of its rows, are one stream of bytes that starts over with every
step. Before a row waits, the worker asks for everything up to `ahead_bytes` beyond that row's own
weights, so that memory goes on working while the worker waits.
"""

from __future__ import annotations

import numpy as np

from event_tensor.device_function import Region, Tile, Whole
from event_tensor.graph import Call
from event_tensor.task_table import IntArray, TaskTable
from persistent_runtime.formats import row_bytes
from persistent_runtime.rows import layout

Piece = tuple[int, int, int]  # where the address stands in the argument table, first byte, bytes


def encode_prefetches(table: TaskTable, orders: tuple[IntArray, ...], argument_begin: IntArray,
                      ahead_bytes: int) -> tuple[IntArray, IntArray]:
    """(prefetch list [pieces, PREFETCH_WORDS], range of each row [rows + 1]), workers in turn."""
    entries: list[tuple[int, int, int, int]] = []
    indptr = [0]
    streams = _Streams(table, argument_begin)
    for order in orders:
        pieces = [streams.pieces_of(int(task)) if ahead_bytes else [] for task in order]
        for asked in ask_ahead(pieces, ahead_bytes):
            unit = layout.PREFETCH_UNIT
            entries += [(tensor, first // unit, length // unit, 0)
                        for tensor, first, length in asked]
            indptr.append(len(entries))
    return np.array(entries, np.int64).reshape(-1, layout.PREFETCH_WORDS), np.array(indptr)


def ask_ahead(pieces: list[list[Piece]], ahead_bytes: int) -> list[list[Piece]]:
    """For each row the pieces to ask for before it waits, every byte of the stream once per step.

    pieces: what each row reads. The end of the stream is followed by its beginning.

    >>> ask_ahead([[(0, 0, 64)], [], [(1, 0, 64)]], 32)
    [[(0, 32, 32), (1, 0, 32)], [], [(1, 32, 32), (0, 0, 32)]]
    """
    stream = [piece for row in pieces for piece in row]
    length = sum(piece[2] for piece in stream)
    ahead = min(ahead_bytes, length)
    ends = np.cumsum([0] + [sum(piece[2] for piece in row) for row in pieces]).tolist()
    asked = []
    done = ahead  # the step before has asked for the beginning
    for end in ends[1:]:
        asked.append(_cut(stream, length, done, end + ahead))
        done = max(done, end + ahead)
    return asked


def _cut(stream: list[Piece], length: int, begin: int, end: int) -> list[Piece]:
    """The pieces in [begin, end) of the stream repeated without end."""
    found = []
    at = begin // length * length if length else 0
    while at < end and length:
        for tensor, first, size in stream:
            low, high = max(begin, at), min(end, at + size)
            if low < high:
                found.append((tensor, first + low - at, high - low))
            at += size
    return found


class _Streams:
    """The weights of single tasks; what is common to a call's tiles is worked out once."""

    def __init__(self, table: TaskTable, argument_begin: IntArray) -> None:
        self._table = table
        self._argument_begin = argument_begin
        self._calls: dict[int, list[tuple[int, int, int, int, int]]] = {}

    def pieces_of(self, task: int) -> list[Piece]:
        call = int(self._table.call[task])
        if call not in self._calls:
            self._calls[call] = self._weights(self._table.graph.calls[call])
        pieces = []
        for position, axis, tile_rows, size, rows in self._calls[call]:
            first = int(self._table.tile[task, axis]) * tile_rows
            count = min(tile_rows, rows - first)
            if count > 0:
                pieces.append((position, first * size, count * size))
        return pieces

    def _weights(self, call: Call) -> list[tuple[int, int, int, int, int]]:
        """(position of the address, axis, rows of a tile, bytes of a row, rows) per operand."""
        found = []
        for k, (operand, tensor) in enumerate(zip(call.function.operands, call.args, strict=True)):
            if tensor is None or tensor.role != "weight":
                continue
            region = call.region(operand)
            if _is_row_tile(region):
                size, rows = row_bytes(tensor), int(tensor.shape[0].evaluate({}))
                if size % layout.PREFETCH_UNIT == 0:
                    position = int(self._argument_begin[call.index]) + k * layout.OPERAND_WORDS
                    found.append((position, call.function.axes.index(region[0].axis),
                                  int(region[0].size.evaluate({})), size, rows))
        return found


def _is_row_tile(region: tuple[Region, ...]) -> bool:
    """Whether a tile reads whole rows that follow one another in memory."""
    return (len(region) == 2 and isinstance(region[0], Tile) and isinstance(region[1], Whole))

