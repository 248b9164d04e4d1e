"""Device-function bodies of the CPU: registered as plain Python, compiled on first use, cached.

A body is a function `body(arguments, tile, step, scratch, formats)`: pointers to the argument
record (int64), the tile's coordinates (int32), the step record (int64) and this worker's scratch
(float32), and for each operand, by its name, a zero of the type that stores it (see intrinsics.py
and block_types.py). Compiled, it is a C function of the four pointers, the same type for every
device function.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from numba import types
from numba.core import sigutils
from numba.core.ccallback import CFunc

from event_tensor.device_function import DeviceFunction
from event_tensor.errors import UserError
from event_tensor.refusals import require_room, reserving
from persistent_runtime.body_table import BodyTable
from persistent_runtime.cache.compilations import COMPILATIONS, Compilation
from persistent_runtime.cache.files import make_folder
from persistent_runtime.cache.kept_file import NEW
from persistent_runtime.cache.sources import file_digest
from persistent_runtime.cpu.compile.disk_cache import FUNCTIONS, DiskEntry
from persistent_runtime.cpu.jit import (
    ENTRY_COMPILER,
    FASTMATH,
    collection_paused,
    device_jit,
    interrupt_deferred,
)
from persistent_runtime.cpu.vectors.block_types import Block, loader_source
from persistent_runtime.cpu.vectors.emit import CONVERTS_FLOAT16
from persistent_runtime.formats import FLOAT16, FLOAT32, format_of
from persistent_runtime.function_table import OperandFormats, Variant, variant
from persistent_runtime.rows import layout

Body = Callable[..., None]
Key = tuple[Callable[..., Any], tuple[str, ...]]  # one C function in a process for each

ENTRY_SIGNATURE = types.void(types.CPointer(types.int64), types.CPointer(types.int32),
                             types.CPointer(types.int64), types.CPointer(types.float32))


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A compilation in another process that has just ended. since_s: when this one began to wait
    for it, on the clock of time.monotonic."""

    since_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class CompiledBody:
    """`address` of `void(int64*, int32*, int64*, float*)`, valid while this object lives."""

    name: str
    dtype: str
    address: int
    keep_alive: Any


LLVM_BYTES = 96 << 20, 96 << 20  # address space, and data; compiling one function takes less

_bodies: BodyTable[Body] = BodyTable(
    "CPU", f"{__name__}.cpu_body", [f"persistent_runtime.cpu.bodies.{name}"
                                    for name in ("attention", "linear", "experts", "tokens")])
_compiled: dict[Key, CompiledBody] = {}
_reasons: dict[Path, str] = {}  # folder of the cache → why this process had to make it
compiling = threading.RLock()  # numba's own lock is taken inside it, never around it


def cpu_body(declaration: DeviceFunction) -> Callable[[Body], Body]:
    """Registers the decorated function as the CPU body of a device function.

    Helpers of a body outside this package belong into its own file: the cache notices changes in
    that file and in `sources.compiled_sources`, and nowhere else.
    """

    def register(body: Body) -> Body:
        _bodies.add(declaration, body, (body.__module__, body.__qualname__))
        return body

    return register


def body_of(declaration: DeviceFunction) -> Body:
    """The registered body; raises UserError when there is none."""
    return _bodies.find(declaration)


@dataclass(frozen=True, slots=True)
class Entry:
    """What a C function is made of. signature: numba's; sources: the files that would show changes
    beside those of this package."""

    function: FunctionType
    signature: Any
    name: str
    dtype: str
    key: Key
    sources: tuple[Path, ...]

    def file_in(self, folder: Path) -> Path:
        """Where the cache has the C function, if it has been compiled before."""
        line = self.function.__code__.co_firstlineno
        return folder / f"{self.function.__qualname__}-{line}{FUNCTIONS.suffix}"

    @property
    def can_be_kept(self) -> bool:
        """Whether there is a source file that would show changes."""
        return all(source.is_file() for source in self.sources)

    @property
    def is_compiled(self) -> bool:
        """Whether this process has the C function."""
        return self.key in _compiled


def compile_body(declaration: DeviceFunction, formats: OperandFormats) -> CompiledBody:
    """The C function of a device function for its operands' formats; see `COMPILATIONS` for its
    cost.

    Raises UserError for an unknown format or a device function without a body.
    """
    return compile_entry(entry_of(variant(declaration, formats)))


def _entry(arguments, tile, step, scratch):  # noqa: ANN001, ANN202
    body(arguments, tile, step, scratch, formats)  # noqa: F821 (globals that entry_of provides)


def zero_of(dtype: str) -> Any:
    """A zero of the type that stores a format's elements; numba has no bfloat16, and no float16 on
    the CPU, whose bits it sees as integers. Of a format of blocks, what stands for a block."""
    stored = format_of(dtype)
    if not stored.is_elementwise:
        return Block(stored)
    return np.zeros(1, np.int16 if stored.storage == np.float16 else stored.storage)[0]


compiled_into = cache(device_jit)  # one dispatcher of numba for all entries of a body


@cache
def operand_record(names: tuple[str, ...]) -> Any:
    """The type of `formats` as bodies get it: a field for each operand."""
    return namedtuple("formats", names)


def entry_of(of: Variant) -> Entry:
    """The C entry of a body for its operands' formats, as a function of its own; raises UserError.

    What tells variants apart is in the name; the file and line are the body's, so that the cache
    notices its changes.
    """
    declaration, stored = of.function, [format_of(name) for name in dict.fromkeys(of.formats)]
    if FLOAT16 in stored and not CONVERTS_FLOAT16:
        raise UserError("this CPU has no float16 conversions; use float32 or bfloat16")
    body = body_of(declaration)
    names = tuple(operand.name for operand in declaration.operands)
    formats = operand_record(names)(*map(zero_of, of.formats))
    record = repr((layout.argument_offsets(declaration), of.formats))
    label = summary(of.formats)
    name = f"{declaration.name}_{label.replace('+', '_')}_{_digest(record)[:8]}"
    code = _entry.__code__.replace(co_filename=inspect.getfile(body), co_name=name,
                                   co_firstlineno=body.__code__.co_firstlineno)
    function = FunctionType(code, {"__name__": body.__module__, "body": compiled_into(body),
                                   "formats": formats}, name)
    function.__qualname__ = name
    sources = (Path(inspect.getfile(body)),
               *(loader_source(found) for found in stored if not found.is_elementwise))
    return Entry(function, ENTRY_SIGNATURE, declaration.name, label, (body, of.formats), sources)


def summary(formats: Sequence[str]) -> str:
    """The formats that are not those of activations and control tensors; float32 for none."""
    told = [name for name in dict.fromkeys(formats)
            if format_of(name).is_weight and name != FLOAT32.name]
    return "+".join(told) or FLOAT32.name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def worker_entry(worker: Any, signature: Any) -> Entry:
    """A worker is the same for all formats."""
    return Entry(worker, signature, worker.__name__, "", (worker, ()),
                 (Path(worker.__code__.co_filename),))


def compile_entry(entry: Entry, elsewhere: Elsewhere | None = None) -> CompiledBody:
    """Its C function, once for all kernels of this process: from the disk cache where it has been
    compiled before, or `elsewhere` just now."""
    with compiling:
        if entry.key not in _compiled:
            _compiled[entry.key] = _compile(entry, elsewhere)
        return _compiled[entry.key]


def _compile(entry: Entry, elsewhere: Elsewhere | None) -> CompiledBody:
    begin_s = elsewhere.since_s if elsewhere else time.monotonic()
    name = entry.name
    function = CFunc(entry.function, sigutils.normalize_signature(entry.signature), {},
                     {"nopython": True, "fastmath": FASTMATH, "error_model": "numpy"},
                     ENTRY_COMPILER)
    disk: DiskEntry | None = None
    folder, reason = open_cache()
    note = f"not cached: {name} has no source file that would show changes"
    if entry.can_be_kept:
        disk = DiskEntry(entry.file_in(folder), {f"source of {name}": " ".join(
            file_digest(source) for source in entry.sources)})
        function._cache = disk
    with interrupt_deferred(), collection_paused(), reserving(f"compiling {name}"):
        if not (disk and disk.path.exists()):
            require_room(*LLVM_BYTES)
        function.compile()
    is_hit = function.cache_hits > 0 and not elsewhere
    if disk:  # what is wrong with a file says more than that there was no folder for it
        note = disk.note
        reason = disk.reason if note else reason or disk.reason or NEW
    COMPILATIONS.append(Compilation(
        name, entry.dtype, is_hit, time.monotonic() - begin_s, note, "" if is_hit else reason,
        begin_s, elsewhere.seconds if elsewhere else 0.0))
    return CompiledBody(name, entry.dtype, function.address, function)


def open_cache() -> tuple[Path, str]:
    """The folder, and why this process found none; "" if it did. It may be one that cannot be
    written, and then need not exist."""
    folder = FUNCTIONS.directory()
    with compiling:
        if folder not in _reasons:
            _, _reasons[folder] = FUNCTIONS.open()
        with suppress(OSError):
            make_folder(folder)  # it may have been removed since
        return folder, _reasons[folder]
