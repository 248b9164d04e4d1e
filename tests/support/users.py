"""Commands as another user: no root, and with or without an entry in passwd."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache

import pytest


def as_user(uid: int) -> list[str]:
    """What to put before a command. The user may read and search everything, for the interpreter
    may lie in root's home, and write nothing that is not its own."""
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups",
            "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]


@cache
def can_change_user() -> bool:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return False
    done = subprocess.run([*as_user(65534), sys.executable, "-c", ""], capture_output=True)
    return done.returncode == 0


needs_users = pytest.mark.skipif("not __import__('users').can_change_user()",
                                 reason="only root may become another user")
