"""Stores: one kind of kept file each, in folders that are found by what the files depend on.

`<kind>-<fingerprint>/key.json` says what the fingerprint stands for; beside it are the files. Files
appear under their names complete or not at all, so processes may share a folder, also one that they
can only read; no path of this machine decides what is found.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from persistent_runtime.cache.files import (
    base_directory,
    distrust,
    is_believed,
    make_folder,
    may,
    read_file,
    write_file,
)
from persistent_runtime.cache.kept_file import Key, changed_keys

KEY_FILE = "key.json"


@dataclass(frozen=True, slots=True)
class Store:
    """kind: how its folders' names begin; holds: what its files are, for reports; suffix: how
    their names end; key: all that every file in a folder depends on, beside what the file itself
    names; base: where the folders are."""

    kind: str
    holds: str
    suffix: str
    key: Callable[[], Key]
    base: Callable[[], Path] = base_directory

    def directory(self) -> Path:
        """The folder that this installation uses on this machine; it need not exist."""
        fingerprint = hashlib.sha256(json.dumps(self.key()).encode()).hexdigest()[:16]
        return self.base() / f"{self.kind}-{fingerprint}"

    def open(self) -> tuple[Path, str]:
        """The folder, made and with its key in it as far as it can be written; and why there was
        none before, "" where there was one."""
        folder = self.directory()
        if read_key(folder) is not None:
            return folder, ""
        is_new, key = not self.kept_in(folder), self.key()
        others = [(changed_keys(other.key, key), other) for other in self.folders() if other.key]
        with suppress(OSError):
            make_folder(folder)
            write_file(folder / KEY_FILE, json.dumps(key, indent=1).encode())
        if not is_new:
            return folder, ""
        if not others:
            return folder, "first start with this cache"
        changed, _ = min(others, key=lambda pair: len(pair[0]))  # the newest of equals
        return folder, "changed: " + ", ".join(changed)

    def kept_in(self, folder: Path) -> int:
        """How many files this user could take from it."""
        return sum(map(is_believed, folder.glob("*" + self.suffix)))

    def folders(self) -> list[CacheFolder]:
        """All of this kind, the newest first; ones that vanish meanwhile are left out."""
        found = []
        for path in self.base().glob(f"{self.kind}-*"):
            try:
                status = path.lstat()
                sizes = [file.stat().st_size for file in path.rglob("*") if file.is_file()]
                found.append(CacheFolder(path, self, read_key(path), sum(sizes),
                                         self.kept_in(path), status.st_mtime,
                                         why_unused(path, status)))
            except OSError:
                continue
        return sorted(found, key=lambda folder: -folder.made_s)


@dataclass(frozen=True, slots=True)
class CacheFolder:
    """One fingerprint's folder. key: None where it does not say; files: that this user can take
    from it; made_s: seconds since 1970; problem: why it is not used, "" where it can be."""

    path: Path
    store: Store
    key: Key | None
    bytes: int
    files: int
    made_s: float
    problem: str = ""

    def remove(self) -> None:
        """Removes it at once for all who look; a process that has read it needs it no more."""
        doomed = Path(tempfile.mkdtemp(prefix="removed-", dir=self.path.parent))
        try:
            self.path.rename(doomed / self.path.name)
        except OSError:
            doomed.rmdir()
            raise
        shutil.rmtree(doomed)


def folders_of(stores: Iterable[Store]) -> list[CacheFolder]:
    """Those of all stores, the newest first."""
    found = [folder for store in stores for folder in store.folders()]
    return sorted(found, key=lambda folder: -folder.made_s)


def why_unused(folder: Path, status: os.stat_result) -> str:
    if not may(os.R_OK | os.X_OK, folder):
        return "it cannot be read"
    return distrust(status)


def read_key(folder: Path) -> Key | None:
    try:
        key = json.loads(read_file(folder / KEY_FILE))
    except (OSError, ValueError):
        return None
    return key if isinstance(key, dict) else None
