"""Which tasks are finished before which, in every execution: ancestor sets of a task table.

A set is a row of bits, one for each task in the order of waves. The rows of a wave share a prefix,
because they depend on the same tasks of earlier layers. A wave stores that prefix once and only the
rest for each row, so memory and time grow with the number of tasks, not with its square.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from event_tensor.conservative import conservative_events
from event_tensor.task_table import IntArray, TaskTable
from event_tensor.waves import gather_ranges, waves

Bytes = npt.NDArray[np.uint8]


@dataclass(slots=True)
class _Rows:
    """Sets in groups: row r of group g is prefixes[g] and then bits[g][r]; all beyond is 0."""

    group: IntArray  # [rows]: the group of each row; `place`: its place in the group
    place: IntArray
    prefixes: list[Bytes] = field(default_factory=list)
    bits: list[Bytes] = field(default_factory=list)  # [rows of the group, width]

    def add(self, rows: IntArray, prefix: Bytes, bits: Bytes) -> None:
        """Adds a group of rows: their common prefix, and the bytes that follow it in each."""
        differs = (bits != bits[:1]).any(axis=0)
        alike = int(np.argmax(differs)) if differs.any() else bits.shape[1]
        self.group[rows], self.place[rows] = len(self.bits), np.arange(len(rows))
        self.prefixes.append(np.concatenate([prefix, bits[0, :alike]]))
        self.bits.append(bits[:, alike:].copy())

    def read(self, rows: IntArray, begin: int, width: int) -> Bytes:
        """[rows, width]: the bytes from `begin` on; `begin` lies in the prefix of every row."""
        result = np.zeros((len(rows), width), np.uint8)
        for group in np.unique(self.group[rows]).tolist():
            of_group = np.flatnonzero(self.group[rows] == group)
            shared, own = self.prefixes[group][begin:], self.bits[group]
            result[of_group, :len(shared)] = shared
            result[of_group, len(shared):len(shared) + own.shape[1]] = own[
                self.place[rows[of_group]]]
        return result

    def end(self, rows: IntArray) -> int:
        """The length of the longest of the rows, in bytes."""
        return max((len(self.prefixes[g]) + self.bits[g].shape[1]
                    for g in np.unique(self.group[rows]).tolist()), default=0)

    def common_prefix(self, rows: IntArray, lengths: IntArray, ufunc: np.ufunc) -> Bytes:
        """What `ufunc` over each `lengths[k]` of the rows begins with, as far as that is the same
        for all k."""
        groups, of_row = np.unique(self.group[rows], return_inverse=True)
        uses = np.zeros((len(lengths), len(groups)), bool)
        uses[np.repeat(np.arange(len(lengths)), lengths), of_row] = True
        known = min((len(self.prefixes[g]) for g in groups.tolist()), default=0)
        combined = np.stack([
            ufunc.reduce([self.prefixes[g][:known] for g in groups[used].tolist()], axis=0)
            if used.any() else np.zeros(known, np.uint8) for used in np.unique(uses, axis=0)])
        differs = (combined != combined[:1]).any(axis=0)
        return combined[0, :int(np.argmax(differs)) if differs.any() else known]


class _Sets:
    """The same rows to be asked for single tasks, all of them at once."""

    def __init__(self, rows: _Rows) -> None:
        self._group, self._place = rows.group, rows.place
        self._shared, self._width = (np.array(sizes, np.int64) for sizes in (
            [len(prefix) for prefix in rows.prefixes], [bits.shape[1] for bits in rows.bits]))
        # events that no task waits for have no group; their rows come last and are empty
        self._shared, self._width = np.append(self._shared, 0), np.append(self._width, 0)
        nothing = np.zeros(0, np.uint8)
        parts = [*rows.prefixes, nothing, *(bits.ravel() for bits in rows.bits), nothing,
                 np.zeros(1, np.uint8)]
        self._bytes = np.concatenate(parts)
        begin = np.cumsum([0, *(len(part) for part in parts[:-1])])
        self._prefix_begin, self._bits_begin = np.split(begin[:-1], 2)

    def contain(self, rows: IntArray, position: IntArray) -> npt.NDArray[np.bool_]:
        """Element-wise (broadcasting): is the task at this position in the set?"""
        group, byte = self._group[rows], position >> 3
        beyond = byte - self._shared[group]
        index = np.where(beyond < 0, self._prefix_begin[group] + byte,
                         self._bits_begin[group] + self._place[rows] * self._width[group] + beyond)
        index = np.where(beyond < self._width[group], index, len(self._bytes) - 1)  # a zero
        return np.asarray(self._bytes[index] >> (position & 7).astype(np.uint8) & 1, bool)


@dataclass(frozen=True, slots=True, eq=False)
class Ancestors:
    """The tasks that are finished before each task starts, and when each event has fired."""

    position: IntArray  # [tasks]: in the order of waves
    _tasks: _Sets
    _events: _Sets

    def before(self, earlier: IntArray, later: IntArray) -> npt.NDArray[np.bool_]:
        """Element-wise (broadcasting): is `earlier` ordered before `later`?"""
        return self._tasks.contain(later, self.position[earlier])

    def all_behind(self, tasks: IntArray, events: IntArray) -> bool:
        """Whether all these tasks are finished when the events have fired."""
        found = self._events.contain(events[None, :], self.position[tasks][:, None])
        return bool(found.any(axis=1).all())


def ancestors(table: TaskTable) -> Ancestors:
    """The ancestor set of every task, wave by wave.

    An event that stands for a whole event tensor proves only what all its producers have in common:
    a task that waits for one of the tensor's events waits for at least one producer.
    """
    order = waves(table)
    position = np.empty(table.num_tasks, np.int64)
    position[np.concatenate([np.zeros(0, np.int64), *order])] = np.arange(table.num_tasks)
    tasks, events = (_Rows(np.full(count, -1), np.zeros(count, np.int64))
                     for count in (table.num_tasks, table.num_events))
    indptr, producer = table.producers()
    is_conservative = conservative_events(table)
    for wave in order:
        positions, lengths = gather_ranges(table.wait_indptr, wave)
        awaited = table.wait_event[positions]
        fresh = np.unique(awaited[events.group[awaited] < 0])
        for ufunc, new in ((np.bitwise_or, fresh[~is_conservative[fresh]]),
                           (np.bitwise_and, fresh[is_conservative[fresh]])):
            if len(new):
                entries, counts = gather_ranges(indptr, new)
                _combine(events, new, tasks, producer[entries], counts, ufunc, position)
        _combine(tasks, wave, events, awaited, lengths, np.bitwise_or)
    return Ancestors(position, _Sets(tasks), _Sets(events))


def _combine(target: _Rows, rows: IntArray, source: _Rows, source_rows: IntArray,
             lengths: IntArray, ufunc: np.ufunc, position: IntArray | None = None) -> None:
    """Row rows[k] of the target is `ufunc` over the next lengths[k] rows of the source, to each of
    which the task itself is added if `position` is given."""
    prefix, end = source.common_prefix(source_rows, lengths, ufunc), source.end(source_rows)
    own = np.zeros(0, np.int64) if position is None else position[source_rows]
    if len(own):
        prefix, end = prefix[:int(own.min()) >> 3], max(end, (int(own.max()) >> 3) + 1)
    begin = len(prefix)
    terms = source.read(source_rows, begin, end - begin)
    terms[np.arange(len(own)), (own >> 3) - begin] |= np.left_shift(1, own & 7).astype(np.uint8)
    bits = np.zeros((len(rows), end - begin), np.uint8)
    present = lengths > 0
    if present.any():
        starts = (np.cumsum(lengths) - lengths)[present]
        bits[present] = ufunc.reduceat(terms, starts, axis=0)
    target.add(rows, prefix, bits)
