"""How many workers can run at once, and what limits their number."""

from __future__ import annotations

import os
from dataclasses import dataclass

from event_tensor.errors import UserError
from persistent_runtime.cpu.cgroup import cpu_quota

# Many more workers than cores only wait for each other's turns; so many still end in bearable time,
# and a small machine can try out what a bigger one will do.
MOST_PER_CORE, ALWAYS_ALLOWED = 8, 64


@dataclass(frozen=True, slots=True)
class Limit:
    """So many cores, and what says so."""

    cores: int
    source: str


@dataclass(frozen=True, slots=True)
class Cores:
    """Cores that this process may use: the least of at least one limit."""

    limits: tuple[Limit, ...]

    @property
    def count(self) -> int:
        return max(min(limit.cores for limit in self.limits), 1)

    @property
    def reason(self) -> str:
        """The limit that holds, then what the others would allow."""
        first, *others = sorted(self.limits, key=lambda limit: limit.cores)
        return "; ".join([first.source, *(f"{o.source} allows {o.cores}" for o in others)])


def find_cores() -> Cores:
    """As of now: affinity and quotas may change while a process runs.

    A quota counts without its fraction. Workers spin while they wait: two of them on a quota of
    1.5 spend it in three quarters of each period, and then the system holds both. Tokens would
    come a little faster on average, with a gap in every tenth of a second.
    """
    if hasattr(os, "sched_getaffinity"):
        limits = [Limit(len(os.sched_getaffinity(0)), "affinity")]
    else:
        limits = [Limit(os.cpu_count() or 1, "the machine")]
    if quota := cpu_quota():
        source = f"cgroup quota of {round(quota.cpus, 2)} CPUs ({quota.file})"
        limits.append(Limit(quota.whole_cpus, source))
    configured = getattr(os, "process_cpu_count", lambda: None)()  # from Python 3.13 on
    if configured is not None and configured < limits[0].cores:
        limits.append(Limit(configured, "PYTHON_CPU_COUNT or -X cpu_count"))
    return Cores(tuple(limits))


def available_cores() -> int:
    """Cores this process may use."""
    return find_cores().count


def check_workers(workers: int) -> int:
    """Raises UserError for a number of threads that no launch should start."""
    if workers < 1:
        raise UserError(f"workers is {workers}; give at least 1")
    cores = available_cores()
    most = max(MOST_PER_CORE * cores, ALWAYS_ALLOWED)
    if workers > most:
        raise UserError(f"workers is {workers}, but only {cores} can run at once here; give at "
                        f"most {most}, or leave it out")
    return workers
