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
import os
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite
import numba as nb
import numpy as np
from numba import types

import persistent_runtime
from event_tensor.device_function import DeviceFunction
from event_tensor.errors import UserError
from persistent_runtime import layout
from persistent_runtime.cpu.intrinsics import FASTMATH, device_jit
from persistent_runtime.cpu.vectors import CONVERTS_FLOAT16, CPU_FEATURES

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
    """One line of the warm-up report. `note` says why a result could not be kept on disk."""

    function: str
    dtype: str
    cache_hit: bool
    seconds: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class CompiledBody:
    """`address` of `void(int64*, int32*, int64*, float*)`, valid while this object lives."""

    name: str
    dtype: str
    address: int
    keep_alive: Any


# beside this folder, compiled into bodies
SHARED_SOURCES = ("layout.py", "device_functions.py", "moe_functions.py")

COMPILATIONS: list[Compilation] = []  # of this process, in order

_bodies: dict[str, Body] = {}
_compiled: dict[tuple[Body, str], CompiledBody] = {}
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


def cache_directory() -> Path:
    """Where this machine's compiled bodies of these very sources are kept."""
    base = os.environ.get("EVENT_TENSOR_CACHE") or Path.home() / ".cache" / "event-tensor"
    return Path(base).expanduser() / f"cpu-{runtime_fingerprint()}"


def runtime_fingerprint() -> str:
    """Names all that a compiled body depends on beside its own file, which numba watches itself."""
    digest = hashlib.sha256()
    for part in (nb.__version__, llvmlite.__version__, llvmlite.binding.get_host_cpu_name(),
                 CPU_FEATURES):
        digest.update(part.encode() + b"\0")
    root = Path(persistent_runtime.__file__).parent
    for source in (*sorted((root / "cpu").glob("*.py")), *(root / name for name in SHARED_SOURCES)):
        digest.update(source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def _entry(arguments, tile, step, scratch):  # noqa: ANN001, ANN202
    body(arguments, tile, step, scratch, like)  # noqa: F821 (globals that _entry_of provides)


def _entry_of(declaration: DeviceFunction, body: Body, dtype: str) -> FunctionType:
    """The C entry of a body for one dtype, as a function of its own.

    numba keys its cache by file, name, line, bytecode and closure. A closure over a dispatcher
    never hits in another process, so body and `like` are globals, and what tells variants apart
    is in the name; the file and line are the body's, whose changes numba then notices.
    """
    record = repr(layout.argument_offsets(declaration))
    name = f"{declaration.name}_{dtype}_{hashlib.sha256(record.encode()).hexdigest()[:8]}"
    code = _entry.__code__.replace(co_filename=inspect.getfile(body), co_name=name,
                                   co_firstlineno=body.__code__.co_firstlineno)
    entry = FunctionType(code, {"__name__": body.__module__, "body": device_jit(body),
                                "like": STORAGE[dtype]}, name)
    entry.__qualname__ = name
    return entry


def _compile(declaration: DeviceFunction, body: Body, dtype: str) -> CompiledBody:
    return compile_entry(_entry_of(declaration, body, dtype), ENTRY_SIGNATURE,
                         declaration.name, dtype)


def compile_entry(entry: FunctionType, signature: Any, name: str = "", dtype: str = ""
                  ) -> CompiledBody:
    """A C function made of `entry`, from the disk cache where it has been compiled before."""
    name = name or entry.__name__

    def build(cache: bool) -> Any:
        return nb.cfunc(signature, cache=cache, nopython=True, fastmath=FASTMATH,
                        error_model="numpy")(entry)

    begin = time.perf_counter()
    directory = cache_directory()
    note = _why_unwritable(directory)
    if note:
        function = build(cache=False)
    else:
        try:
            with _numba_cache_in(directory):
                try:
                    function = build(cache=True)
                except (EOFError, pickle.UnpicklingError):
                    note = f"replaced a damaged entry in {directory}"
                    for path in directory.rglob(f"*.{entry.__qualname__}-*"):
                        path.unlink(missing_ok=True)
                    function = build(cache=True)
        except OSError as error:  # a full disk, say; the code itself compiles without it
            note = f"not cached in {directory}: {error}"
            function = build(cache=False)
    COMPILATIONS.append(Compilation(name, dtype, function.cache_hits > 0,
                                    time.perf_counter() - begin, note))
    return CompiledBody(name, dtype, function.address, function)


def _why_unwritable(directory: Path) -> str:
    """Empty, or the reason why nothing can be kept there."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    except OSError as error:
        return f"not cached: {error}; set EVENT_TENSOR_CACHE to a writable directory"
    return ""


@contextmanager
def _numba_cache_in(directory: Path) -> Iterator[None]:
    """Points numba's cache at `directory` and back again: the caller's own cache stays his."""
    before = nb.config.CACHE_DIR
    nb.config.CACHE_DIR = str(directory)
    try:
        yield
    finally:
        nb.config.CACHE_DIR = before
