"""CPU quotas of Linux control groups, version 1 and 2: how much of the machine a container gets.

A quota is `quota_us` of processor time in every `period_us`; the least of all groups from the
process's own up to the root of the mount holds. A file that is missing or that nobody can make
sense of limits nothing. (Documentation: cgroup-v2.rst and sched-bwc.rst of the kernel, proc(5).)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc/self")
DEFAULT_PERIOD_US = 100_000


@dataclass(frozen=True, slots=True)
class Quota:
    """quota_us in every period_us, both positive; file: where that was read."""

    quota_us: int
    period_us: int
    file: str

    @property
    def cpus(self) -> float:
        return self.quota_us / self.period_us

    @property
    def whole_cpus(self) -> int:
        """Without the fraction: what can run without ever being held."""
        return self.quota_us // self.period_us


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted hierarchy. root: the group that the mount point shows."""

    root: str
    point: Path
    is_v2: bool


def cpu_quota(proc: Path = PROC) -> Quota | None:
    """The least quota that holds for this process; None where there is none. proc: its folder."""
    try:
        groups = (proc / "cgroup").read_text(errors="surrogateescape")
        mounts = (proc / "mountinfo").read_text(errors="surrogateescape")
    except OSError:  # not Linux, or no /proc
        return None
    quotas = [quota for folder, is_v2 in _folders(groups, mounts)
              if (quota := _read_v2(folder) if is_v2 else _read_v1(folder))]
    return min(quotas, key=lambda quota: quota.cpus, default=None)


def _folders(groups: str, mounts: str) -> Iterator[tuple[Path, bool]]:
    """Folders of the process's groups and of all groups around them, and whether each is of
    version 2."""
    paths = _group_paths(groups)
    for mount in _cpu_mounts(mounts):
        path = paths.get(mount.is_v2)
        below = None if path is None else _below(mount.root, path)
        if below is None:  # this mount does not show our group
            continue
        folder = mount.point / below
        while True:
            yield folder, mount.is_v2
            if folder == mount.point:
                break
            folder = folder.parent


def _group_paths(groups: str) -> dict[bool, str]:
    """Whether of version 2 → path of the process's group; from lines `id:controllers:path`."""
    paths: dict[bool, str] = {}
    for line in groups.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            paths[True] = path
        elif "cpu" in controllers.split(","):
            paths[False] = path
    return paths


def _cpu_mounts(mounts: str) -> Iterator[Mount]:
    """From lines `id parent device root point options [tags] - type source options`."""
    for line in mounts.splitlines():
        head, _, tail = line.partition(" - ")
        fields, kind = head.split(" "), tail.split(" ")
        if len(fields) < 6 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2" or kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            yield Mount(_unescaped(fields[3]), Path(_unescaped(fields[4])), kind[0] == "cgroup2")


def _unescaped(field: str) -> str:
    """Blanks and the like stand as `\\040` in mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _below(root: str, path: str) -> str | None:
    """The path seen from the group `root`; None where it does not lie below. In a namespace of
    groups both begin there, and `/..` is outside of it."""
    if ".." in path.split("/") or not path.startswith("/"):
        return None
    if path == root:
        return ""
    prefix = root.rstrip("/") + "/"
    return path.removeprefix(prefix) if path.startswith(prefix) else None


def _read_v2(folder: Path) -> Quota | None:
    """cpu.max holds `quota period` or `max period`."""
    file = folder / "cpu.max"
    words = _words(file)
    return _quota(words[0], words[1] if len(words) > 1 else None, file) if words else None


def _read_v1(folder: Path) -> Quota | None:
    """Two files; a quota of -1 means none."""
    file = folder / "cpu.cfs_quota_us"
    quota, period = _words(file), _words(folder / "cpu.cfs_period_us")
    return _quota(quota[0], period[0] if period else None, file) if quota else None


def _words(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []


def _quota(quota: str, period: str | None, file: Path) -> Quota | None:
    try:
        quota_us = int(quota)
        period_us = DEFAULT_PERIOD_US if period is None else int(period)
    except ValueError:  # "max", or nothing that is known
        return None
    return Quota(quota_us, period_us, str(file)) if quota_us > 0 and period_us > 0 else None
