"""Compiled functions on disk, found by content: sources, library versions, processor.

`cpu-<fingerprint>/key.json` says what the fingerprint stands for; beside it is one file per
compiled function, numba's pickled result, one per rotary table and one per proved schedule. Files
appear under their names complete or not at all, so processes may share a folder, also one that they
can only read; no path of this machine decides what is found.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite
import numba as nb
from numba.core import serialize
from numba.core.compiler import CompileResult
from numba.core.runtime import rtsys

from persistent_runtime.cache.files import (
    VARIABLE,
    base_directory,
    distrust,
    is_believed,
    make_folder,
    may,
    read_file,
    write_file,
    write_problem,
)
from persistent_runtime.cache.sources import CPU, compiled_sources, digests
from persistent_runtime.cpu.compile.emit import CPU_FEATURES

Key = Mapping[str, str]
KEY_FILE = "key.json"
SUFFIX = ".compiled"
NEW = "not made before"


def cache_directory() -> Path:
    """Where this machine's compiled bodies of these very sources are kept."""
    return base_directory() / f"cpu-{runtime_fingerprint()}"


def runtime_key() -> dict[str, str]:
    """All that a compiled body depends on beside its own file."""
    return {"numba": nb.__version__, "llvmlite": llvmlite.__version__,
            "processor": llvmlite.binding.get_host_cpu_name(), "processor features": CPU_FEATURES,
            **digests(compiled_sources(CPU))}


def runtime_fingerprint() -> str:
    return hashlib.sha256(json.dumps(runtime_key()).encode()).hexdigest()[:16]


def changed_keys(old: Key, new: Key) -> list[str]:
    """Names of what differs."""
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]


@dataclass(frozen=True, slots=True)
class CacheFolder:
    """One fingerprint's folder. key: None where it does not say; functions: that this user can
    take from it; made_s: seconds since 1970; problem: why it is not used, "" where it can be."""

    path: Path
    key: Key | None
    bytes: int
    functions: int
    made_s: float
    problem: str = ""


def cache_folders() -> list[CacheFolder]:
    """All folders of the cache, the newest first; ones that vanish meanwhile are left out."""
    folders = []
    for path in base_directory().glob("cpu-*"):
        try:
            status = path.lstat()
            sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
            folders.append(CacheFolder(path, read_key(path), sum(sizes), kept_functions(path),
                                       status.st_mtime, why_unused(path, status)))
        except OSError:
            continue
    return sorted(folders, key=lambda folder: -folder.made_s)


def why_unused(folder: Path, status: os.stat_result) -> str:
    if not may(os.R_OK | os.X_OK, folder):
        return "it cannot be read"
    return distrust(status)


def kept_functions(folder: Path) -> int:
    """How many compiled functions a start could take from it."""
    return sum(map(is_believed, folder.glob("*" + SUFFIX)))


def remove_folder(path: Path) -> None:
    """Removes a folder at once for whoever looks; a process that has read it needs it no more."""
    doomed = Path(tempfile.mkdtemp(prefix="removed-", dir=path.parent))
    try:
        path.rename(doomed / path.name)
    except OSError:
        doomed.rmdir()
        raise
    shutil.rmtree(doomed)


def read_key(folder: Path) -> Key | None:
    try:
        key = json.loads(read_file(folder / KEY_FILE))
    except (OSError, ValueError):
        return None
    return key if isinstance(key, dict) else None


def open_folder(folder: Path) -> str:
    """Makes the folder, and says in it what it is for, as far as it can be written; why there was
    none before, "" where there was one."""
    if read_key(folder) is not None:
        return ""
    is_new, key = not kept_functions(folder), runtime_key()
    others = [(changed_keys(other.key, key), other) for other in cache_folders() if other.key]
    with suppress(OSError):
        make_folder(folder)
        write_file(folder / KEY_FILE, json.dumps(key, indent=1).encode())
    if not is_new:
        return ""
    if not others:
        return "first start with this cache"
    changed, _ = min(others, key=lambda pair: len(pair[0]))  # the newest of equals
    return "changed: " + ", ".join(changed)


class KeptFile:
    """A file of the cache: a line of JSON with a checksum and what the content depends on, then the
    content.

    reason: why it was not found; note: what was wrong with the file or the folder.
    """

    def __init__(self, path: Path, key: Key) -> None:
        self.path = path
        self.key = dict(key)
        self.reason = self.note = ""

    def load(self) -> bytes | None:
        try:
            content = read_file(self.path)
        except FileNotFoundError:
            self.reason = NEW
            return None
        except OSError as error:
            self.reason = self.note = f"cannot use {self.path}: {error.strerror}"
            return None
        header, _, payload = content.partition(b"\n")
        try:
            record = json.loads(header)
            digest, key = record["sha256"], {**record["key"]}
        except (ValueError, KeyError, TypeError):
            digest, key = "", self.key
        if key != self.key:
            self.reason = "changed: " + ", ".join(changed_keys(key, self.key))
            return None
        if digest != hashlib.sha256(payload).hexdigest():
            self.reason = "damaged"
            self.note = f"replaced a damaged entry in {self.path.parent}"
            return None
        return payload

    def save(self, payload: bytes) -> None:
        record = {"sha256": hashlib.sha256(payload).hexdigest(), "key": self.key}
        try:
            write_file(self.path, json.dumps(record).encode() + b"\n" + payload)
        except OSError as error:  # a full disk, say; the process itself runs without it
            folder = self.path.parent  # if it is missing, what keeps it from being made says more
            self.note = (f"not cached in {folder}: {write_problem(folder) or error.strerror}; set "
                         f"{VARIABLE} to a directory that can be written")


class DiskEntry(KeptFile):
    """One compiled function, with the interface of numba's caches."""

    def load_overload(self, signature: Any, target_context: Any) -> CompileResult | None:
        payload = self.load()
        if payload is None:
            return None
        # numba's own caches fill the context with all of its library here, for half a second; a
        # compilation does that by itself, and machine code needs the runtime's symbols only
        rtsys.initialize(target_context)
        return CompileResult._rebuild(target_context, *pickle.loads(payload))

    def save_overload(self, signature: Any, result: CompileResult) -> None:
        if result.library.has_dynamic_globals:
            self.note = "not cached: it holds addresses, as global arrays and ctypes pointers do"
            return
        self.save(serialize.dumps(result._reduce()))
