"""Imports go one way over the four floors, and the upper two need no heavy library."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("event_tensor", "scheduling", "persistent_runtime", "frontend")
HEAVY = {"torch", "triton", "numba", "llvmlite", "transformers"}
# the one exception: what users import from the lowest floor, it takes from the top on first use
RE_EXPORTS = {"event_tensor/__init__.py": {"frontend"}}
FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def imported_packages(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports with their full name"
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    floor = path.relative_to(ROOT).parts[0]
    allowed = RE_EXPORTS.get(path.relative_to(ROOT).as_posix(), set())
    packages = set(imported_packages(path)) - allowed
    above = set(FLOORS[FLOORS.index(floor) + 1:])
    assert not packages & above, f"{floor} must not import {packages & above}"
    if floor in ("event_tensor", "scheduling"):
        assert not packages & HEAVY
