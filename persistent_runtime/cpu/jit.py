"""How numba compiles what runs on the CPU: arithmetic common to all, and helpers taken in whole."""

from __future__ import annotations

import dis
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import CodeType
from typing import Any

import numba as nb
from llvmlite import binding
from numba.core import codegen, compiler, typed_passes, untyped_passes
from numba.core.compiler_machinery import PassManager
from numba.core.registry import CPUDispatcher

# reassoc vectorises sums, contract gives fused multiply-adds. nnan and ninf stay out: softmax
# starts from -inf, and a NaN must reach the logits, where it can be seen.
FASTMATH = {"reassoc", "contract", "nsz", "arcp", "afn"}
Jit = Callable[[Callable[..., Any]], Any]


class HelperLibrary(codegen.JITCodeLibrary):
    """The code of a function that only compiled functions call. They take it in and are optimised
    after that; numba would optimise it by itself as well, and make machine code that nobody runs.
    This and `EntryLibrary` override what numba 0.68 calls.
    """

    def finalize(self) -> None:
        self._finalized = True

    def own_module(self) -> Any:
        for function in self._final_module.functions:
            if not function.is_declaration and function.linkage == binding.Linkage.external:
                function.linkage = "linkonce_odr"  # a copy that nobody calls goes
        return self._final_module

    def with_called(self) -> list[Any]:
        """The libraries of this function and of all that it calls."""
        found = [self]
        for library in found:  # which grows meanwhile
            if isinstance(library, HelperLibrary):
                found += [new for new in library._linking_libraries if new not in found]
        return found

    def _get_module_for_linking(self) -> Any:
        """For functions that numba compiles in its own way."""
        if self._shared_module is None:
            self._shared_module = self.own_module().clone()
            for library in self.with_called()[1:]:
                link(self._shared_module, library)
        return self._shared_module

    def get_pointer_to_function(self, name: str) -> int:
        return 0

    @property
    def codegen(self) -> Any:
        """Where numba asks for the place of an environment, which is for Python objects."""
        return self

    def set_env(self, name: str, environment: Any) -> None:
        pass


def link(module: Any, library: Any) -> None:
    is_helper = isinstance(library, HelperLibrary)
    module.link_in(library.own_module() if is_helper else library._get_module_for_linking(),
                   preserve=True)


class EntryLibrary(codegen.JITCodeLibrary):
    """The code of a C function, with every helper once."""

    def finalize(self) -> None:
        called = [library for direct in self._linking_libraries for library in (
            direct.with_called() if isinstance(direct, HelperLibrary) else [direct])]
        for library in dict.fromkeys(called):
            self._reload_init.update(library._reload_init)
            link(self._final_module, library)
        self._linking_libraries = []
        super().finalize()


# What device functions need of numba's passes, in its order. The others inline closures, lift
# loops, unroll over tuples and fuse expressions of arrays.
PASSES = ((untyped_passes, ("TranslateByteCode", "FixupArgs", "IRProcessing",
                            "RewriteSemanticConstants", "DeadBranchPrune", "GenericRewrites",
                            "InlineInlinables", "ReconstructSSA")),
          (typed_passes, ("NopythonTypeInference", "PreLowerStripPhis", "InlineOverloads",
                          "IRLegalization", "AnnotateTypes", "NativeLowering", "NoPythonBackend")))
SPECIAL_NAMES = {"literal_unroll", "literally"}
SPECIAL_OPERATIONS = {dis.opmap[name] for name in ("RAISE_VARARGS", "SETUP_WITH", "BEFORE_WITH")
                      if name in dis.opmap}


def _needs_all_passes(code: CodeType) -> bool:
    return (not SPECIAL_NAMES.isdisjoint(code.co_names)
            or not SPECIAL_OPERATIONS.isdisjoint(code.co_code[::2])
            or any(isinstance(constant, CodeType) for constant in code.co_consts))


class DeviceCompiler(compiler.Compiler):
    library: type[codegen.JITCodeLibrary]

    def define_pipelines(self) -> Any:
        state = self.state
        state.library = self.library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        if _needs_all_passes(state.func_id.code):
            return super().define_pipelines()
        passes = PassManager("device function")
        for module, names in PASSES:
            for name in names:
                passes.add_pass(getattr(module, name), name)
        passes.finalize()
        return [passes]


class HelperCompiler(DeviceCompiler):
    library = HelperLibrary


class EntryCompiler(DeviceCompiler):
    library = EntryLibrary


class Helper(CPUDispatcher):
    """A function that compiled functions call."""

    def compile(self, sig: Any) -> Any:
        found = self.overloads.get(sig) if isinstance(sig, tuple) else None
        return found.entry_point if found else super().compile(sig)


@contextmanager
def collection_paused() -> Iterator[None]:
    """numba makes many objects that live on, which the garbage collector would walk in vain."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


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


def _is_known() -> bool:
    """Whether numba has what is overridden here; one that works otherwise compiles device functions
    as it does all functions."""
    overridden = {"finalize", "_get_module_for_linking", "get_pointer_to_function", "codegen"}
    return (all(hasattr(codegen.JITCodeLibrary, name) for name in overridden)
            and all(hasattr(module, name) for module, names in PASSES for name in names))


IS_KNOWN = _is_known()
ENTRY_COMPILER: type[compiler.CompilerBase] = EntryCompiler if IS_KNOWN else compiler.Compiler


def _jit(fastmath: set[str]) -> Jit:
    # error_model numpy: a division never raises, so loops keep no exit and vectorise
    options: dict[str, Any] = {"fastmath": fastmath, "error_model": "numpy",
                               "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    if not IS_KNOWN:
        return nb.njit(**options)
    return partial(Helper, locals={}, targetoptions={"nopython": True, **options},
                   pipeline_class=HelperCompiler)


device_jit = _jit(FASTMATH)
# no reassociation: for source whose order of operations carries its precision
exact_jit = _jit({"contract"})
