"""Where the tests stand: importing this puts every folder of them on the path, so that a test may
use what another one defines."""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
FOLDERS = sorted({file.parent for file in TESTS.rglob("*.py")})
PYTHONPATH = os.pathsep.join(map(str, (ROOT, *FOLDERS)))  # of a program that is one of the tests

sys.path += [str(folder) for folder in FOLDERS if str(folder) not in sys.path]
