"""Model directories, decoder graphs, the decode loop, the command line."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from frontend.compile import compile_decode_loop

__all__ = ["compile_decode_loop"]


def __getattr__(name: str) -> Any:
    """`compile_decode_loop`, imported on first use: the command line's --help stays quick."""
    if name == "compile_decode_loop":
        from frontend.compile import compile_decode_loop

        return compile_decode_loop
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
