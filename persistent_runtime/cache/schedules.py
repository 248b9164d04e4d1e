"""Proved schedules kept on disk: a process proves what none has proved yet.

A schedule is found by all that its safety depends on: the graph's text, the declarations of its
device functions, the tiles, the values that it was proved for, the machine, and the sources of
everything that makes and proves schedules. As within a process, sizes that change no tile do not
count, though the cost estimates behind a placement are those of the sizes that came first. What
belongs to the graph is stored by reference.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import platform
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from event_tensor.graph import Graph
from event_tensor.printer import format_graph
from event_tensor.symbols import Symbol
from event_tensor.task_table import Runtime
from persistent_runtime.cache.kept_file import KeptFile
from persistent_runtime.cache.sources import digests, schedule_sources
from persistent_runtime.cache.stores import Store
from persistent_runtime.rows.encode import EncodedSchedule

MOST_BYTES = 64 << 20  # larger ones are made anew by every process
Reference = tuple[str, Any]

# the sources as this process imports them, whatever the files become later
KEY = {"numpy": np.__version__, "python": platform.python_version(),
       **digests(schedule_sources())}
SCHEDULES = Store("schedules", "proved schedules", ".pickle", lambda: KEY)


class KeptSchedules:
    """The schedules of one graph. conditions: what else they depend on; equal texts mean schedules
    that may stand for one another."""

    def __init__(self, graph: Graph, *conditions: object) -> None:
        self._objects = _parts_of(graph)
        self._references = {id(value): name for name, value in self._objects.items()}
        self._folder, _ = SCHEDULES.open()
        functions = sorted({repr(call.function) for call in graph.calls})
        least = sorted({(node.name, node.at_least) for call in graph.calls
                        for tiles in call.tile_num for node in tiles.walk()
                        if isinstance(node, Symbol)})
        self._key = {"graph": _digest(format_graph(graph), repr(least), *functions),
                     "conditions": repr(conditions)}

    def file(self, shape: object, samples: Sequence[Runtime]) -> KeptFile:
        """Where the schedule for these tiles, proved for these values, has its place."""
        values = [(name, array.shape, array.dtype.str, array.tobytes())
                  for runtime in samples for name, array in sorted(runtime.items())]
        key = self._key | {"shape": repr(shape), "samples": _digest(repr(values))}
        name = _digest(key["graph"], key["conditions"], key["shape"])[:16]
        return KeptFile(self._folder / f"schedule-{name}{SCHEDULES.suffix}", key)

    def load(self, file: KeptFile) -> EncodedSchedule | None:
        """The schedule in the file; None where there is none, or one of other sources."""
        content = file.load()
        if content is None:
            return None
        unpickler = _Unpickler(io.BytesIO(zlib.decompress(content)), self._objects)
        schedule: EncodedSchedule = unpickler.load()
        return schedule

    def save(self, file: KeptFile, schedule: EncodedSchedule) -> None:
        """Keeps a proved schedule. A folder that cannot be written costs the next start only."""
        pickled = io.BytesIO()
        _Pickler(pickled, self._references).dump(schedule)
        content = zlib.compress(pickled.getvalue(), level=1)
        if len(content) <= MOST_BYTES:
            file.save(content)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, references: Mapping[int, Reference]) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self._references = references

    def persistent_id(self, value: Any) -> Reference | None:
        return self._references.get(id(value))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, objects: Mapping[Reference, Any]) -> None:
        super().__init__(file)
        self._objects = objects

    def persistent_load(self, reference: Reference) -> Any:
        return self._objects[reference]


def _parts_of(graph: Graph) -> dict[Reference, Any]:
    """Name → object, for all that makes up a graph."""
    named: dict[Reference, Any] = {("graph", ""): graph}
    for kind, values in (("call", graph.calls), ("tensor", graph.tensors()),
                         ("event", graph.events())):
        named |= {(kind, k): value for k, value in enumerate(values)}
    return named | {("function", call.function.name): call.function for call in graph.calls}


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()
