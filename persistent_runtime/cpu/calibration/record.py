"""The calibration of this machine, kept with the cache: `Target` records as they were measured.

It is measured where a start finds none: behind the compilation, because it runs what has been
compiled. A record is of one number of workers and one format of weights. It is found by the
processor, the number of cores, the size of the cache and the sources of all that it ran; a record
of another machine, a damaged one or one with impossible values is measured anew. Where other
programs have the processor nothing is kept, and the start makes do with assumed values. Values are
rounded and kept, so that schedules, which are found by them, are found again.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, replace
from typing import Any

from llvmlite.binding import get_host_cpu_name

from event_tensor.errors import UserError
from persistent_runtime.cache.kept_file import KeptFile
from persistent_runtime.cache.stores import Store
from persistent_runtime.cpu.calibration.measure import measure
from persistent_runtime.cpu.calibration.processor import last_level_cache_bytes, processor_name
from persistent_runtime.cpu.compile.disk_cache import runtime_key
from persistent_runtime.cpu.cores import available_cores
from persistent_runtime.cpu.launch import CpuKernel
from persistent_runtime.cpu.vectors.emit import CPU_FEATURES
from persistent_runtime.formats import format_of
from persistent_runtime.function_table import Variant
from persistent_runtime.functions.dense import norm_linear
from scheduling.target import Target

VARIABLE = "EVENT_TENSOR_MACHINE"
GENERIC = "generic"
DIGITS = 2  # that are kept of a value: two measurements of a quiet machine differ in the third
# What any machine has, of each worker: a value outside was disturbed, and the assumed one stays.
SENSIBLE = {
    "bandwidth_gb_s": (0.2, 200.0), "worker_gb_s": (0.0, 200.0), "cache_gb_s": (1.0, 1000.0),
    "gflops": (2.0, 4000.0), "task_us": (0.02, 5.0), "dependency_us": (0.02, 20.0),
    "pop_us": (0.02, 20.0)}
SHARED = ("bandwidth_gb_s", "cache_gb_s", "gflops")  # of all workers together


def machine_key() -> dict[str, str]:
    return {"machine": processor_name(), "cores": str(os.cpu_count()),
            "cache bytes": str(last_level_cache_bytes()),
            "processor": get_host_cpu_name(), "processor features": CPU_FEATURES}


def store_key() -> dict[str, str]:
    """All that a calibration depends on beside workers and format."""
    return machine_key() | runtime_key()


CALIBRATIONS = Store("machine", "calibrations", ".rates", store_key)


def is_generic() -> bool:
    """Whether the environment asks for assumed values. Raises UserError for another wish."""
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", GENERIC):
        raise UserError(f"{VARIABLE} is {wanted}; set it to {GENERIC}, which measures nothing, or "
                        f"leave it out")
    return wanted == GENERIC


def calibrated(kernel: CpuKernel, assumed: Target) -> Target:
    """`assumed` with what this machine has shown, now or at an earlier start. It stays as it is
    for a kernel without products, and for more workers than can run at once."""
    product = product_of(kernel)
    if product is None or is_generic() or kernel.num_workers > available_cores():
        return assumed
    file = _file(kernel.num_workers, product.format("weight"))
    content = file.load()
    values = read_values(content, assumed.workers) if content is not None else None
    if values is None:
        try:
            rates = measure(kernel, product)
        except (MemoryError, OSError, UserError):  # no room for it; this start has other needs
            return assumed
        if rates is None:  # a machine that is busy now is measured by another start
            return assumed
        values = sensible(asdict(rates), assumed)
        CALIBRATIONS.open()
        file.save(json.dumps(values).encode())
    return _with_values(assumed, **values)


def _with_values(assumed: Target, **values: Any) -> Target:
    return replace(assumed, cache_bytes=last_level_cache_bytes() // 2, **values)


def product_of(kernel: CpuKernel) -> Variant | None:
    """The body of `norm_linear` that a decoder's kernel has, for weights stored one by one."""
    return next((of for of in kernel.kinds.variants if of.function == norm_linear
                 and format_of(of.format("weight")).is_elementwise), None)


def _file(workers: int, dtype: str) -> KeptFile:
    name = f"workers-{workers}-{dtype}{CALIBRATIONS.suffix}"
    return KeptFile(CALIBRATIONS.directory() / name,
                    machine_key() | {"workers": str(workers), "dtype": dtype})


def sensible(rates: dict[str, float], assumed: Target) -> dict[str, float]:
    """The measured values, rounded; an impossible one is replaced by the assumed one."""
    return {name: rounded(value) if is_sensible(name, value, assumed.workers)
            else getattr(assumed, name) for name, value in rates.items()}


def is_sensible(name: str, value: float, workers: int) -> bool:
    least, most = SENSIBLE[name]
    scale = workers if name in SHARED else 1
    return least * scale <= value <= most * scale


def rounded(value: float) -> float:
    return round(value, DIGITS - 1 - math.floor(math.log10(value))) if value else 0.0


def read_values(content: bytes, workers: int) -> dict[str, float] | None:
    """None for what is no complete record of sensible values."""
    try:
        values = json.loads(content)
        complete = values.keys() == SENSIBLE.keys() and all(
            is_sensible(name, float(value), workers) for name, value in values.items())
    except (ValueError, TypeError, AttributeError):
        return None
    return {name: float(value) for name, value in values.items()} if complete else None


def kept_calibrations() -> list[dict[str, object]]:
    """Those that this machine's starts would find, for reports."""
    found: list[dict[str, object]] = []
    for path in sorted(CALIBRATIONS.directory().glob("workers-*" + CALIBRATIONS.suffix)):
        _, workers, dtype = path.stem.split("-", 2)
        content = _file(int(workers), dtype).load() if workers.isdecimal() else None
        values = read_values(content, int(workers)) if content is not None else None
        if values is not None:
            found.append({"workers": int(workers), "dtype": dtype, **values})
    return found
