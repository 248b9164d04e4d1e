"""Every environment variable that the packages read or set is in docs/environment.md."""

import ast
import re

import pytest
from conftest import ROOT

PACKAGES = ("event_tensor", "scheduling", "persistent_runtime", "frontend")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
NAME = re.compile(r"[A-Z][A-Z0-9_]+")
PAGE = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
DOCUMENTED = {name for line in PAGE.splitlines() if line.startswith("| `")
              for name in re.findall(r"`([A-Z][A-Z0-9_]+)`", line.split("|")[1])}


def environment_variables(source):
    """Names in statements and expressions that speak of the environment, and in the constants that
    these name."""
    tree = ast.parse(source)
    constants = {target.id: node.value for node in tree.body if isinstance(node, ast.Assign)
                 for target in node.targets if isinstance(target, ast.Name)}
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Call, ast.Subscript, ast.Dict, ast.BinOp, ast.Compare)):
            continue
        parts = list(ast.walk(node))
        if not any(isinstance(part, ast.Attribute) and part.attr in ("environ", "getenv")
                   for part in parts):
            continue
        parts += [inner for part in parts if isinstance(part, ast.Name) and part.id in constants
                  for inner in ast.walk(constants[part.id])]
        found |= {part.value for part in parts if isinstance(part, ast.Constant)
                  and isinstance(part.value, str) and NAME.fullmatch(part.value)}
    return found


@pytest.mark.parametrize("source, names", [
    ("import os\nos.environ.get('A_B')", {"A_B"}),
    ("import os\nos.environ['A_B'] = 'x'", {"A_B"}),
    ("import os\nV = 'A_B'\nif v := os.environ.get(V): pass", {"A_B"}),
    ("import os\nrun(env={**os.environ, 'A_B': '1'})", {"A_B"}),
    ("import os\nrun(env=os.environ | {'A_B': 'Other text'})", {"A_B"}),
    ("import os\nos.getenv('A_B')", {"A_B"}),
    ("print('A_B')", set()),
])
def test_the_search_finds_them(source, names):
    assert environment_variables(source) == names


def test_all_are_documented():
    read = {name for path in FILES for name in environment_variables(path.read_text("utf-8"))}
    from frontend.report.warmup.runs import CACHES

    assert {"EVENT_TENSOR_CACHE", "EVENT_TENSOR_COMMIT"} <= read
    assert read | set(CACHES) <= DOCUMENTED


def test_at_most_five_are_ours():
    assert len({name for name in DOCUMENTED if name.startswith("EVENT_TENSOR_")}) <= 5
