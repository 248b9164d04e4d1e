"""Facts about this machine and this build that a measurement is worthless without."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from persistent_runtime.cache.sources import package_version

PACKAGES = ("torch", "triton", "numba", "numpy", "transformers")
SETTLE_S = 0.05  # over which a process must be idle
GIT_S = 60  # a busy machine takes seconds
# the features of a processor that decide how fast its kernels are
NOTABLE_FEATURES = ("avx2", "fma", "avx512f", "avx512bf16", "avx512fp16", "amx-bf16", "neon", "sve",
                    "bf16", "i8mm")


def versions() -> dict[str, str | None]:
    """Versions of Python and of our main packages; None where one is missing."""
    return {"python": platform.python_version(),
            **{name: package_version(name) for name in PACKAGES}}


def cpu_name() -> str:
    """The model name the system gives, or LLVM's name of the architecture."""
    from persistent_runtime.cpu.calibration.processor import processor_name

    return processor_name()


def cpu_features() -> list[str]:
    from persistent_runtime.cpu.vectors.emit import CPU_FEATURES

    present = {part[1:] for part in CPU_FEATURES.split(",") if part.startswith("+")}
    return [name for name in NOTABLE_FEATURES if name in present]


def memory_gb() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)


def peak_rss_mb() -> float:
    """The most memory this process has held so far, mapped weights included."""
    try:  # what getrusage says begins with the parent's memory at the time of the fork
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return round(peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6, 1)


class Contention:
    """How much of the processor other programs used between construction and `share()`.

    children: processes that count as ours.
    """

    def __init__(self, children: Sequence[int] = ()) -> None:
        self._children = children
        self._start = _cpu_seconds(children)

    def share(self) -> float | None:
        """0: the machine was ours alone; 1: it was all theirs. None where the system is silent."""
        end = _cpu_seconds(self._children)
        if self._start is None or end is None:
            return None
        busy, total, own = (e - s for e, s in zip(end, self._start, strict=True))
        return round(min(max((busy - own) / max(total, 1e-9), 0.0), 1.0), 3)


def wait_until_idle(processes: Sequence[int], timeout_s: float = 5.0) -> bool:
    """Whether the processes stopped using the processor: idle threads of a pool spin for a while
    before they sleep. Where the system does not say, it is given a moment and believed."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        before = [process_cpu_seconds(process) for process in processes]
        time.sleep(SETTLE_S)
        after = [process_cpu_seconds(process) for process in processes]
        if before == after:
            return True
    return False


def process_cpu_seconds(process: int) -> float | None:
    """What all threads of a process have used so far; None where the system is silent."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    # after the name in parentheses: state is field 3, user and system time are 14 and 15
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _cpu_seconds(children: Sequence[int]) -> tuple[float, float, float] | None:
    """(busy, busy and idle, of this process and `children`), summed over all cores."""
    try:
        first = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal; guest time is counted in user already
    ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in first.split()[1:9]]
    own = sum(os.times()[:2]) + sum(process_cpu_seconds(child) or 0 for child in children)
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks), own


def gpu_name() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def commit() -> str | None:
    """The commit of the checkout this runs from, with -dirty for changes; None outside of one.

    Result files may have changed: one benchmark must not make the next one look dirty. Where the
    checkout is a copy whose history is another's, EVENT_TENSOR_COMMIT says what it is a copy of.
    """
    if given := os.environ.get("EVENT_TENSOR_COMMIT"):
        return given
    head = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--", ":/", ":(top,exclude)benchmarks/results")
    return None if head is None else head + ("-dirty" if changes else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"}, timeout=GIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def provenance() -> dict[str, Any]:
    return {"versions": versions(), "cpu": cpu_name(), "commit": commit(),
            "date": datetime.now(UTC).isoformat(timespec="seconds")}
