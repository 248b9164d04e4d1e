"""Rotary tables kept on disk, so that only a first start imports torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frontend.config.rope import RopeConfig
from frontend.graph import rope_tables as rope
from persistent_runtime.cache.kept_file import KeptFile
from persistent_runtime.cache.sources import file_digest, package_version
from persistent_runtime.cache.stores import Store

LEAST_CONTEXT = 4096  # a file serves all contexts up to its own, a power of two from here on
MOST_BYTES = 64 << 20  # longer tables are computed at every start


def tables_key() -> dict[str, str]:
    """All that a table depends on beside its arguments."""
    return {"torch": str(package_version("torch")),
            "source of rope": file_digest(Path(rope.__file__))}


TABLES = Store("rope", "rotary tables", ".tables", tables_key)


class KeptRopeTables:
    """`rope.rope_tables` of these arguments, from the cache where they are in it."""

    def __init__(self, config: RopeConfig, head_dim: int, max_context: int) -> None:
        self._max_context = max_context
        context = max(LEAST_CONTEXT, 1 << (max_context - 1).bit_length())
        self._shape = 2, context, head_dim // 2
        self._arguments = config, head_dim, context
        self._file = self._content = None
        if 4 * int(np.prod(self._shape)) <= MOST_BYTES:
            name = hashlib.sha256(repr(self._arguments).encode()).hexdigest()[:16]
            self._file = KeptFile(TABLES.directory() / f"rope-{name}{TABLES.suffix}",
                                  {"arguments": repr(self._arguments)})
            self._content = self._file.load()

    @property
    def is_kept(self) -> bool:
        return self._content is not None

    def read(self) -> NDArray[np.float32]:
        """cos and sin: [2, max_context, head_dim / 2] float32. Computes and keeps them if need
        be; a folder that cannot be written costs the next start, not this one."""
        if self._content is not None:
            tables = np.frombuffer(bytearray(self._content), np.float32).reshape(self._shape)
        else:
            tables = np.stack(rope.rope_tables(*self._arguments))
            if self._file is not None:
                TABLES.open()
                self._file.save(tables.tobytes())
        return tables[:, : self._max_context]
