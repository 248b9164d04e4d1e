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
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from numba import types
from numba.core import sigutils
from numba.core.ccallback import CFunc

from event_tensor.device_function import DeviceFunction
from event_tensor.errors import UserError
from persistent_runtime import layout
from persistent_runtime.cpu.disk_cache import (
    SUFFIX,
    DiskEntry,
    cache_directory,
    file_digest,
    open_folder,
)
from persistent_runtime.cpu.jit import FASTMATH, device_jit, interrupt_deferred
from persistent_runtime.cpu.vectors import CONVERTS_FLOAT16

Body = Callable[..., None]

# dtype → a zero of the type that stores it; numba has no bfloat16, and no float16 on the CPU
STORAGE: dict[str, Any] = {
    "float32": np.float32(0), "bfloat16": np.uint16(0), "float16": np.int16(0)}
ENTRY_SIGNATURE = types.void(types.CPointer(types.int64), types.CPointer(types.int32),
                             types.CPointer(types.int64), types.CPointer(types.float32))
BUILTIN_BODIES = tuple(f"persistent_runtime.cpu.{name}"
                       for name in ("attention", "linear", "moe", "tokens"))


@dataclass(frozen=True, slots=True)
class Compilation:
    """One line of the warm-up report. note: what was wrong with the cache; reason: why there was
    no hit; begin_s: on the clock of time.monotonic."""

    function: str
    dtype: str
    cache_hit: bool
    seconds: float
    note: str = ""
    reason: str = ""
    begin_s: float = 0.0


@dataclass(frozen=True, slots=True)
class CompiledBody:
    """`address` of `void(int64*, int32*, int64*, float*)`, valid while this object lives."""

    name: str
    dtype: str
    address: int
    keep_alive: Any


COMPILATIONS: list[Compilation] = []  # of this process, in order

_bodies: dict[str, Body] = {}
_compiled: dict[tuple[Callable[..., Any], str], CompiledBody] = {}
_reasons: dict[Path, str] = {}  # folder of the cache → why this process had to make it
_lock = threading.RLock()


def cpu_body(declaration: DeviceFunction) -> Callable[[Body], Body]:
    """Registers the decorated function as the CPU body of a device function.

    Helpers of a body outside this package belong into its own file: the cache notices changes in
    that file, in persistent_runtime/cpu and in SHARED_SOURCES, and nowhere else.
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
            f"@cpu_body({declaration.name}) from persistent_runtime.cpu.registry") from None


def compile_body(declaration: DeviceFunction, dtype: str) -> CompiledBody:
    """The C function of a device function for one weight dtype; see `COMPILATIONS` for its cost.

    Raises UserError for an unknown dtype or a device function without a body.
    """
    if dtype not in STORAGE:
        raise UserError(f"dtype {dtype!r} has no CPU bodies; use one of {', '.join(STORAGE)}")
    if dtype == "float16" and not CONVERTS_FLOAT16:
        raise UserError("this CPU has no float16 conversions; use float32 or bfloat16")
    body = body_of(declaration)
    with _lock:
        if (body, dtype) not in _compiled:
            _compiled[body, dtype] = _compile(declaration, body, dtype)
        return _compiled[body, dtype]


def _entry(arguments, tile, step, scratch):  # noqa: ANN001, ANN202
    body(arguments, tile, step, scratch, like)  # noqa: F821 (globals that _entry_of provides)


def _entry_of(declaration: DeviceFunction, body: Body, dtype: str) -> FunctionType:
    """The C entry of a body for one dtype, as a function of its own.

    What tells variants apart is in the name; the file and line are the body's, so that the cache
    notices its changes.
    """
    record = repr(layout.argument_offsets(declaration))
    name = f"{declaration.name}_{dtype}_{hashlib.sha256(record.encode()).hexdigest()[:8]}"
    code = _entry.__code__.replace(co_filename=inspect.getfile(body), co_name=name,
                                   co_firstlineno=body.__code__.co_firstlineno)
    entry = FunctionType(code, {"__name__": body.__module__, "body": device_jit(body),
                                "like": STORAGE[dtype]}, name)
    entry.__qualname__ = name
    return entry


def compile_worker(worker: FunctionType, signature: Any) -> CompiledBody:
    """The C function of a worker, once for all kernels of this process."""
    with _lock:
        if (worker, "") not in _compiled:
            _compiled[worker, ""] = compile_entry(worker, signature)
        return _compiled[worker, ""]


def _compile(declaration: DeviceFunction, body: Body, dtype: str) -> CompiledBody:
    return compile_entry(_entry_of(declaration, body, dtype), ENTRY_SIGNATURE,
                         declaration.name, dtype)


def compile_entry(entry: FunctionType, signature: Any, name: str = "", dtype: str = ""
                  ) -> CompiledBody:
    """A C function made of `entry`, from the disk cache where it has been compiled before."""
    name = name or entry.__name__
    begin_s = time.monotonic()
    function = CFunc(entry, sigutils.normalize_signature(signature), {},
                     {"nopython": True, "fastmath": FASTMATH, "error_model": "numpy"})
    folder, source = cache_directory(), Path(entry.__code__.co_filename)
    reason = note = ""
    disk: DiskEntry | None = None
    try:
        reason = _open_once(folder)
    except OSError as error:
        note = f"not cached: {error}; set EVENT_TENSOR_CACHE to a writable directory"
    if not note and not source.is_file():
        note = f"not cached: {name} has no source file that would show changes"
    if not note:
        line = entry.__code__.co_firstlineno
        disk = DiskEntry(folder / f"{entry.__qualname__}-{line}{SUFFIX}",
                         {f"source of {name}": file_digest(source)})
        function._cache = disk
    with interrupt_deferred():
        function.compile()
    if disk:
        reason, note = reason or disk.reason, disk.note
    is_hit = function.cache_hits > 0
    COMPILATIONS.append(Compilation(name, dtype, is_hit, time.monotonic() - begin_s, note,
                                    "" if is_hit else reason, begin_s))
    return CompiledBody(name, dtype, function.address, function)


def _open_once(folder: Path) -> str:
    """Why this process found no folder; "" if it did. Raises OSError where none can be written."""
    with _lock:
        if folder not in _reasons:
            _reasons[folder] = open_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return _reasons[folder]
