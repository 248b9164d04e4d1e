"""Documentation is true: its Python runs, its commands are accepted, its files and links exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANG_S

from frontend.report.warmup import runs

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXT = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
SNIPPETS = [(name, k, code) for name, text in TEXT.items()
            for k, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))]
COMMANDS = sorted({command for text in TEXT.values()
                   for command in re.findall(r"`(event-tensor [^`]+)`", text)})
STANDS_FOR = {"MODEL": "demo", "TEXT": "hacker:"}


@pytest.mark.parametrize("name, k, code", SNIPPETS, ids=[f"{n}-{k}" for n, k, _ in SNIPPETS])
def test_python_runs(name, k, code, tmp_path):
    file = tmp_path / "snippet.py"  # numba compiles functions of real files
    file.write_text(code, encoding="utf-8")
    subprocess.run([sys.executable, str(file)], check=True, timeout=HANG_S,
                   env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path)


@pytest.mark.parametrize("text", COMMANDS)
def test_commands_run(text, command, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "CACHES", {})  # what a cold start compiles is known elsewhere
    monkeypatch.chdir(tmp_path)
    _, *words = shlex.split(text)
    done = command(*(STANDS_FOR.get(word, word) for word in words))
    assert done.returncode == 0, done.stderr


def test_files_that_are_named_exist():
    for name, text in TEXT.items():
        for path in re.findall(r"`((?:[\w]+/)+[\w]+\.py)`", text):
            assert any((ROOT / folder / path).exists() for folder in (
                "", "persistent_runtime", "frontend")), f"{name} names {path}"
        for folder in re.findall(r"`((?:[\w]+/)+)`", text):
            assert any((ROOT / above / folder).is_dir() for above in (
                "", "persistent_runtime/cpu", "persistent_runtime/gpu")), f"{name} names {folder}"
        for link in re.findall(r"\]\(([\w./-]+\.md)\)", text):
            assert (ROOT / "docs" / link).exists(), f"{name} links to {link}"
