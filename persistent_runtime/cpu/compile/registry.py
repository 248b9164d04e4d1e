"""Device-function bodies of the CPU: registered as plain Python, compiled on first use, cached.

A body is a function `body(arguments, tile, step, scratch, like)`: pointers to the argument record
(int64), the tile's coordinates (int32), the step record (int64) and this worker's scratch
(float32), and a zero of the type that stores weights (see intrinsics.py). Compiled, it is a C
function of the four pointers, the same type for every device function.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import threading
import time
from collections.abc import Callable
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
from persistent_runtime.cache.compilations import COMPILATIONS, Compilation
from persistent_runtime.cache.files import make_folder
from persistent_runtime.cache.kept_file import NEW
from persistent_runtime.cache.sources import file_digest
from persistent_runtime.cpu.compile.disk_cache import FUNCTIONS, DiskEntry
from persistent_runtime.cpu.compile.emit import CONVERTS_FLOAT16
from persistent_runtime.cpu.compile.jit import FASTMATH, device_jit, interrupt_deferred
from persistent_runtime.formats import format_of
from persistent_runtime.rows import layout

Body = Callable[..., None]

ENTRY_SIGNATURE = types.void(types.CPointer(types.int64), types.CPointer(types.int32),
                             types.CPointer(types.int64), types.CPointer(types.float32))
BUILTIN_BODIES = tuple(f"persistent_runtime.cpu.bodies.{name}"
                       for name in ("attention", "linear", "experts", "tokens"))


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

_bodies: dict[str, Body] = {}
_compiled: dict[tuple[Callable[..., Any], str], CompiledBody] = {}
_reasons: dict[Path, str] = {}  # folder of the cache → why this process had to make it
compiling = threading.RLock()  # numba's own lock is taken inside it, never around it


def cpu_body(declaration: DeviceFunction) -> Callable[[Body], Body]:
    """Registers the decorated function as the CPU body of a device function.

    Helpers of a body outside this package belong into its own file: the cache notices changes in
    that file and in `sources.compiled_sources`, and nowhere else.
    """

    def register(body: Body) -> Body:
        _bodies[declaration.name] = body
        return body

    return register


def body_of(declaration: DeviceFunction) -> Body:
    """The registered body; raises UserError when there is none."""
    if declaration.name not in _bodies:
        for module in BUILTIN_BODIES:
            importlib.import_module(module)
    try:
        return _bodies[declaration.name]
    except KeyError:
        raise UserError(
            f"device function {declaration.name!r} has no CPU body; decorate one with "
            f"@cpu_body({declaration.name}) from persistent_runtime.cpu.compile.registry") from None


@dataclass(frozen=True, slots=True)
class Entry:
    """What a C function is made of. signature: numba's; dtype: how weights are stored."""

    function: FunctionType
    signature: Any
    name: str
    dtype: str
    key: tuple[Callable[..., Any], str]  # one C function in a process for each

    def file_in(self, folder: Path) -> Path:
        """Where the cache has the C function, if it has been compiled before."""
        line = self.function.__code__.co_firstlineno
        return folder / f"{self.function.__qualname__}-{line}{FUNCTIONS.suffix}"

    @property
    def can_be_kept(self) -> bool:
        """Whether there is a source file that would show changes."""
        return self.source.is_file()

    @property
    def source(self) -> Path:
        return Path(self.function.__code__.co_filename)

    @property
    def is_compiled(self) -> bool:
        """Whether this process has the C function."""
        return self.key in _compiled


def compile_body(declaration: DeviceFunction, dtype: str) -> CompiledBody:
    """The C function of a device function for one weight dtype; see `COMPILATIONS` for its cost.

    Raises UserError for an unknown dtype or a device function without a body.
    """
    return compile_entry(entry_of(declaration, dtype))


def _entry(arguments, tile, step, scratch):  # noqa: ANN001, ANN202
    body(arguments, tile, step, scratch, like)  # noqa: F821 (globals that entry_of provides)


def zero_of(dtype: str) -> Any:
    """A zero of the type that stores a format's elements; numba has no bfloat16, and no float16 on
    the CPU, whose bits it sees as integers."""
    storage = format_of(dtype).storage
    return np.zeros(1, np.int16 if storage == np.float16 else storage)[0]


compiled_into = cache(device_jit)  # one dispatcher of numba for all entries of a body


def entry_of(declaration: DeviceFunction, dtype: str) -> Entry:
    """The C entry of a body for one dtype, as a function of its own; raises UserError.

    What tells variants apart is in the name; the file and line are the body's, so that the cache
    notices its changes.
    """
    if dtype == "float16" and not CONVERTS_FLOAT16:
        raise UserError("this CPU has no float16 conversions; use float32 or bfloat16")
    body = body_of(declaration)
    record = repr(layout.argument_offsets(declaration))
    name = f"{declaration.name}_{dtype}_{hashlib.sha256(record.encode()).hexdigest()[:8]}"
    code = _entry.__code__.replace(co_filename=inspect.getfile(body), co_name=name,
                                   co_firstlineno=body.__code__.co_firstlineno)
    function = FunctionType(code, {"__name__": body.__module__, "body": compiled_into(body),
                                   "like": zero_of(dtype)}, name)
    function.__qualname__ = name
    return Entry(function, ENTRY_SIGNATURE, declaration.name, dtype, (body, dtype))


def worker_entry(worker: Any, signature: Any) -> Entry:
    """A worker is the same for all weights."""
    return Entry(worker, signature, worker.__name__, "", (worker, ""))


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
                     {"nopython": True, "fastmath": FASTMATH, "error_model": "numpy"})
    disk: DiskEntry | None = None
    folder, reason = open_cache()
    note = f"not cached: {name} has no source file that would show changes"
    if entry.can_be_kept:
        disk = DiskEntry(entry.file_in(folder), {f"source of {name}": file_digest(entry.source)})
        function._cache = disk
    with interrupt_deferred(), reserving(f"compiling {name}"):
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
