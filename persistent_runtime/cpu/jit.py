"""How numba compiles what runs on the CPU: arithmetic common to all, and helpers taken in whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numba as nb
from numba.core import codegen, compiler

# reassoc vectorises sums, contract gives fused multiply-adds. nnan and ninf stay out: softmax
# starts from -inf, and a NaN must reach the logits, where it can be seen.
FASTMATH = {"reassoc", "contract", "nsz", "arcp", "afn"}
Jit = Callable[[Callable[..., Any]], Any]


class HelperLibrary(codegen.JITCodeLibrary):
    """The code of a function that only compiled functions call. They take it in and are optimised
    after that; numba would optimise it by itself as well, and make machine code that nobody runs.
    It overrides what numba 0.68 calls."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        return 0

    @property
    def codegen(self) -> Any:
        """Where numba asks for the place of an environment, which is for Python objects."""
        return self

    def set_env(self, name: str, environment: Any) -> None:
        pass


class HelperCompiler(compiler.Compiler):
    def define_pipelines(self) -> Any:
        state = self.state
        state.library = HelperLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        return super().define_pipelines()


@contextmanager
def interrupt_deferred() -> Iterator[None]:
    """Ctrl-C inside takes effect at the end. LLVM calls back into Python, where an exception is
    printed and forgotten, and numba then misses what the callback should have left."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    caught: list[tuple[Any, ...]] = []
    signal.signal(signal.SIGINT, lambda *arguments: caught.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if caught:
            handler(*caught[0])


def _options() -> dict[str, Any]:
    """A numba that works otherwise compiles helpers as it does all functions."""
    options: dict[str, Any] = {"error_model": "numpy", "no_cpython_wrapper": True,
                               "no_cfunc_wrapper": True}
    overridden = set(vars(HelperLibrary)) - {"set_env"}
    is_known = all(hasattr(codegen.JITCodeLibrary, name) for name in overridden)
    return options | ({"pipeline_class": HelperCompiler} if is_known else {})


# error_model numpy: a division never raises, so loops keep no exit and vectorise
device_jit: Jit = nb.njit(fastmath=FASTMATH, **_options())
# no reassociation: for source whose order of operations carries its precision
exact_jit: Jit = nb.njit(fastmath={"contract"}, **_options())
