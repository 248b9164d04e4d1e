"""Compiled functions on disk, found by content: sources, library versions, processor."""

from __future__ import annotations

import pickle
from typing import Any

import llvmlite
import numba as nb
from numba.core import serialize
from numba.core.compiler import CompileResult
from numba.core.runtime import rtsys

from persistent_runtime.cache.kept_file import KeptFile
from persistent_runtime.cache.sources import CPU, compiled_sources, digests
from persistent_runtime.cache.stores import Store
from persistent_runtime.cpu.vectors.emit import CPU_FEATURES


def runtime_key() -> dict[str, str]:
    """All that a compiled body depends on beside its own file."""
    return {"numba": nb.__version__, "llvmlite": llvmlite.__version__,
            "processor": llvmlite.binding.get_host_cpu_name(), "processor features": CPU_FEATURES,
            **digests(compiled_sources(CPU))}


# each file is numba's pickled result
FUNCTIONS = Store("cpu", "compiled functions", ".compiled", runtime_key)


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
