"""Symbols, tensors, event tensors, device functions, graphs; derivation, proofs, simulation.

This floor imports nothing above it. What users write comes from the top floor on first use, so that
`from event_tensor import compile_decode_loop` works and `import event_tensor` stays quick.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frontend.compile import compile_decode_loop
    from frontend.decode.decoder import Decoder
    from frontend.decode.generation import Generation, Token

__all__ = ["Decoder", "Generation", "Token", "__version__", "compile_decode_loop"]

__version__ = "0.1.0"

HOME_OF = {  # a name of the top floor → the module that defines it
    "Decoder": "frontend.decode.decoder",
    "Generation": "frontend.decode.generation",
    "Token": "frontend.decode.generation",
    "compile_decode_loop": "frontend.compile",
}


def __getattr__(name: str) -> Any:
    if name not in HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
