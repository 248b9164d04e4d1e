"""Imports go one way: over the four floors, over the rooms of a floor, and nowhere in a circle.

Every import counts, also one inside a function and one for a type checker alone.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent
FLOORS = ("event_tensor", "scheduling", "persistent_runtime", "frontend")
HEAVY = {"torch", "triton", "numba", "llvmlite", "transformers"}
# the one exception: what users import from the lowest floor, it takes from the top on first use
RE_EXPORTS = {"event_tensor/__init__.py": {"frontend"}}
FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
# The rooms of a package, folders and single files, in the order in which they may import: only from
# rooms further up in the table. Rooms of one row import nothing of one another.
ROOMS = {
    "persistent_runtime": [
        ["formats"],
        ["storage", "function_table"],
        ["functions", "rows"],
        ["trace", "body_table"],
        ["launch"],
        ["cache", "backend"],
        ["cpu", "gpu"],
        ["backends", "graph_schedules"],
        ["megakernel"],
    ],
    "persistent_runtime.cpu": [
        ["cgroup", "jit"],
        ["cores", "vectors"],
        ["compile", "worker"],
        ["bodies", "launch", "single_tile"],
        ["calibration"],
        ["backend"],
    ],
    "persistent_runtime.gpu": [
        ["addresses", "target"],
        ["ring"],
        ["worker"],
        ["compile", "memory"],
        ["bodies", "launch", "single_tile"],
        ["interpret", "backend"],
    ],
    "frontend": [
        ["model_files"],
        ["config"],
        ["graph"],
        ["families", "decode"],
        ["compile"],
        ["__init__"],
        ["report"],
        ["commands"],
        ["cli"],
    ],
}


def imported_names(path: Path) -> Iterator[str]:
    """What a file imports, each name with the module that it is imported from."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports with their full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def arrows() -> Iterator[tuple[str, str]]:
    """(module, what it imports), of modules of the four floors."""
    for module, path in MODULES.items():
        if path.relative_to(ROOT).as_posix() in RE_EXPORTS:
            continue
        for name in imported_names(path):
            target = name if name in MODULES else name.rpartition(".")[0]
            if target in MODULES:
                yield module, target


def room_of(module: str, package: str) -> str:
    return [*module.removeprefix(package).split("."), "__init__"][1]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    floor = path.relative_to(ROOT).parts[0]
    allowed = RE_EXPORTS.get(path.relative_to(ROOT).as_posix(), set())
    packages = {name.partition(".")[0] for name in imported_names(path)} - allowed
    above = set(FLOORS[FLOORS.index(floor) + 1:])
    assert not packages & above, f"{floor} must not import {packages & above}"
    if floor in ("event_tensor", "scheduling"):
        assert not packages & HEAVY


def test_no_module_imports_itself_over_others():
    circles = [sorted(part) for part in nx.strongly_connected_components(nx.DiGraph(arrows()))
               if len(part) > 1]
    assert not circles


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_only_from_rooms_before_them(package):
    row = {room: k for k, rooms in enumerate(ROOMS[package]) for room in rooms}
    own = {room_of(module, package) for module in MODULES if module.startswith(f"{package}.")}
    assert own | {"__init__"} == set(row) | {"__init__"}, "the table lists every room, and no other"
    wrong = [f"{module} imports {target}" for module, target in arrows()
             if module.startswith(f"{package}.") and target.startswith(f"{package}.")
             and room_of(module, package) != room_of(target, package)
             and row[room_of(target, package)] >= row[room_of(module, package)]]
    assert not wrong
