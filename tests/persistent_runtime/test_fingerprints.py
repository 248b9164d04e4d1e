"""What is kept on disk is found by the content of the sources it depends on, however deep in the
packages they stand: a nested file that changes makes everything that it may be part of anew."""

import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

pytest.importorskip("numba")
pytest.importorskip("triton")

PACKAGES = ("event_tensor", "scheduling", "persistent_runtime", "frontend")
FINGERPRINTS = """
from persistent_runtime.cpu.compile.disk_cache import FUNCTIONS
from persistent_runtime.gpu.compile.registry import kernel_fingerprint
from persistent_runtime.cache.schedules import SCHEDULES
print(FUNCTIONS.directory().name, kernel_fingerprint([]), SCHEDULES.directory().name)
"""
# a nested file → which of (CPU kernels, GPU kernels, schedules) may depend on it
NESTED = {
    "persistent_runtime/cpu/below/bodies/new.py": (True, False, False),
    "persistent_runtime/gpu/below/bodies/new.py": (False, True, False),
    "persistent_runtime/below/rows/new.py": (False, False, True),
    "event_tensor/below/new.py": (False, False, True),
    "scheduling/below/deeper/new.py": (False, False, True),
    "frontend/below/new.py": (False, False, False),
    "persistent_runtime/rows/layout.py": (True, True, True),
}


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    """A copy of the packages that a test may change."""
    root = tmp_path_factory.mktemp("installation")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package,
                        ignore=shutil.ignore_patterns("__pycache__", "demo*"))
    return root


def fingerprints(root):
    ended = subprocess.run([sys.executable, "-c", FINGERPRINTS], cwd=root, capture_output=True,
                           text=True, timeout=300, env={"PATH": "", "PYTHONPATH": str(root),
                                                        "HOME": str(root)})
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


def test_an_edited_nested_file_changes_the_keys_of_what_depends_on_it(installation):
    before = fingerprints(installation)
    for name, depends in NESTED.items():
        file = installation / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8") as text:
            text.write("# edited\n")
        after = fingerprints(installation)
        assert tuple(a != b for a, b in zip(after, before, strict=True)) == depends, name
        before = after


def test_a_copy_elsewhere_has_the_same_keys(installation, tmp_path):
    shutil.copytree(installation, tmp_path / "copy")
    assert fingerprints(tmp_path / "copy") == fingerprints(installation)
