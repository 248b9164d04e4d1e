"""The README says what is true: its example runs, its output is real, its figures are committed."""

import re
import subprocess
import sys
from pathlib import Path

from conftest import HANG_S

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


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


def test_figures_come_from_committed_results():
    report = subprocess.run([sys.executable, "benchmarks/report.py"], capture_output=True,
                            text=True, cwd=ROOT, check=True).stdout
    measured = README.partition("## Measured")[2].partition("\n## ")[0]
    for paragraph in report.strip().split("\n\n"):
        assert " ".join(paragraph.split()) in " ".join(measured.split())


def test_folders_are_all_there():
    for folder in re.findall(r"^\| `(\w+)/`", README, re.MULTILINE):
        assert (ROOT / folder).is_dir()
