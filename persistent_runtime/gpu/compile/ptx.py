"""A pass of our own over the PTX that Triton makes of the worker: no register starts undefined.

A reduction over several warps reads partial results in as many threads as there are; in the others,
the register of that load has no value, and an atomic's has one in a single thread. Inside a loop
that is a value from the turn before, as far as the assembler can tell: it keeps such a register
through everything in between, for each reduction of the kernel one, and spills them when there are
too many. So each gets a value first; what Triton loads from global memory has one already.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import triton

PARTIAL = re.compile(r"@!?%p\d+ (?:ld\.shared|atom)\.[\w.]*?[bsu](\d+) (%\w+), *\[")


def define_first(ptx: str) -> str:
    """Puts a zero into every register that a guarded shared load or atomic may leave as it was.

    >>> print(define_first("\\t@%p1 ld.shared.b32 %r2, [ %r3 + 0 ];").expandtabs(1))
     mov.b32 %r2, 0;
     @%p1 ld.shared.b32 %r2, [ %r3 + 0 ];
    """
    def defined(found: re.Match[str]) -> str:
        bits = max(16, int(found[1]))  # there is no narrower move
        return f"mov.b{bits} {found[2]}, 0;\n\t{found[0]}"

    return PARTIAL.sub(defined, ptx)


def add_pass(*arguments: Any) -> tuple[str, str]:
    """Triton's hook for pipelines: (compiler, stages, …), or nothing where it asks for a key."""
    if arguments:
        stages: dict[str, Callable[[Any, Any], Any]] = arguments[1]
        make_ptx = stages["ptx"]
        stages["ptx"] = lambda source, metadata: define_first(make_ptx(source, metadata))
    return __name__, __name__


@contextmanager
def own_pass() -> Iterator[None]:
    """Kernels that are compiled, or looked up in Triton's cache, in here go through the pass."""
    settings = triton.knobs.runtime
    before = settings.add_stages_inspection_hook
    settings.add_stages_inspection_hook = add_pass
    try:
        yield
    finally:
        settings.add_stages_inspection_hook = before
