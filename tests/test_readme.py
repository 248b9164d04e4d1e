"""The README says what is true: its example runs, its output is real, its figures are committed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANG_S

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = (ROOT / "docs" / "measured.md").read_text(encoding="utf-8")


def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 12
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, cwd=ROOT,
                          timeout=HANG_S, check=True)
    assert "1 compilation, 1 launch" in done.stdout


def test_the_demo_prints_what_the_readme_shows(command):
    shown = re.search(r"\$ make demo\n(.*?)```", README, re.DOTALL).group(1)
    prompt, text, _ = re.fullmatch(r"prompt: (.*?)\n(.*)\n(TTFT.*)\n", shown, re.DOTALL).groups()
    tokens = re.search(r"--max-new-tokens (\d+)", (ROOT / "Makefile").read_text()).group(1)
    done = command("generate", "demo", "--prompt", prompt, "--max-new-tokens", tokens)
    assert " ".join(done.stdout.split()) == " ".join(text.split())


@pytest.mark.parametrize("arguments, text", [(["--readme"], README), ([], MEASURED)],
                         ids=["README", "measured"])
def test_figures_come_from_committed_results(arguments, text):
    report = subprocess.run([sys.executable, "benchmarks/report.py", *arguments],
                            capture_output=True, text=True, cwd=ROOT, check=True).stdout
    for paragraph in report.strip().split("\n\n"):
        assert " ".join(paragraph.split()) in " ".join(text.split())


def test_the_first_screen_is_short():
    """A sentence, the demo, the example and four rows of figures."""
    first, _, _ = README.partition("\n## ")
    rows = [line for line in first.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 4 and len(first.splitlines()) < 45


def test_links_lead_somewhere():
    """And there is no picture: as the description of a package it would need an address."""
    assert "![" not in README
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_folders_are_all_there():
    for folder in re.findall(r"^\| `(\w+)/`", README, re.MULTILINE):
        assert (ROOT / folder).is_dir()
