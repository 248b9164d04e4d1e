"""Directories that a process needs beside the model's: a home for libraries, and temporary ones."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from event_tensor.errors import UserError
from persistent_runtime.cache.files import can_hold, home_directory, substitute_home

if TYPE_CHECKING:
    from tempfile import TemporaryDirectory


def provide_home() -> None:
    """Where there is no home directory, HOME becomes one for this user among the temporary files:
    libraries and the processes started from here look there, and many fail where there is none.

    Triton compiles nothing without a cache that it can write. Raises UserError as
    `substitute_home` does.
    """
    home = home_directory()
    if home is None:
        home = substitute_home()
        os.environ["HOME"] = str(home)
    if not can_hold(home / ".triton"):
        os.environ.setdefault("TRITON_CACHE_DIR", str(substitute_home() / ".triton" / "cache"))


def temporary_folder(what: str) -> TemporaryDirectory[str]:
    """what: names, in the UserError, the thing that needs the directory."""
    import tempfile

    try:
        return tempfile.TemporaryDirectory()
    except OSError as error:
        raise UserError(f"{what} needs a temporary directory ({error.strerror}); set TMPDIR to one "
                        f"that can be written") from None
