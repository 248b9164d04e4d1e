"""What keys of the cache are made of: source files, at any depth of the packages, and versions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RUNTIME = Path(__file__).parents[1]
CPU, GPU = RUNTIME / "cpu", RUNTIME / "gpu"
SHARED = ("rows/layout.py", "functions")


def source_files(*roots: Path, without: Iterable[Path] = ()) -> list[Path]:
    """The files themselves among `roots`, and all source files below the folders, at any depth;
    those below `without` are left out."""
    skipped = tuple(without)
    found = {file for root in roots for file in ([root] if root.is_file() else root.rglob("*.py"))
             if not any(file.is_relative_to(folder) for folder in skipped)}
    return sorted(found)


def compiled_sources(backend: Path) -> list[Path]:
    """What a backend compiles: its own folder, the binary interface and the declarations."""
    return source_files(backend, *(RUNTIME / name for name in SHARED))


def schedule_sources() -> list[Path]:
    """What makes and proves a schedule, and writes it down."""
    folders = [RUNTIME.parent / package for package in ("event_tensor", "scheduling")]
    return source_files(*folders, RUNTIME, without=(CPU, GPU))


def package_version(name: str) -> str | None:
    """Of an installed package, without importing it; None where nothing says."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def digests(sources: Iterable[Path]) -> dict[str, str]:
    """Path within the installation → digest: no path of a machine decides what is found."""
    return {path_within(source): file_digest(source) for source in sources}


def path_within(source: Path) -> str:
    """Within this package, or with the name of the package beside it."""
    root = RUNTIME if source.is_relative_to(RUNTIME) else RUNTIME.parent
    return source.relative_to(root).as_posix()
