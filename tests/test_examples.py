"""Every example has a main(), is as short as it promises, and runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import HANG_S, command_environment
from two_ropes import reference_tokens, write_two_ropes

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments, text=""):
    return subprocess.run([sys.executable, str(EXAMPLES / name), *arguments], input=text, text=True,
                          capture_output=True, timeout=HANG_S, env=command_environment())


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_every_example_says_what_it_is_and_has_a_main(path):
    source = path.read_text()
    assert source.startswith('"""') and "def main() -> None:" in source


def test_low_latency_chat():
    assert len((EXAMPLES / "low_latency_chat.py").read_text().splitlines()) < 60
    done = run("low_latency_chat.py", "demo", "--max-new-tokens", "20",
               text="hacker\nkernel\n" + "word " * 3000 + "\nkernel\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "A person who enjoys" in done.stdout
    assert done.stdout.count("[TTFT") == 3
    assert done.stdout.count("error: ") == 1 and "leaves no room" in done.stdout


def test_transformers_bridge():
    done = run("transformers_bridge.py", "--new-tokens", "20")
    assert done.returncode == 0, done.stderr
    assert "A person who enjoys" in done.stdout and "same tokens: True" in done.stdout


def test_split_row_sum():
    done = run("split_row_sum.py", "--sizes", "1", "3", "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("same events: True") == 4


def test_storage_format():
    done = run("storage_format.py", "--tokens", "1", "9", "--workers", "2")
    assert done.returncode == 0, done.stderr
    errors = [float(error) for error in re.findall(r"largest error (\S+)", done.stdout)]
    assert len(errors) == 2 and max(errors) < 1e-4
    assert "98304 bytes become 27648" in done.stdout


def test_own_family(tmp_path):
    """Another activation, norms with an offset and rope by layer, in one file: exact tokens."""
    assert len((EXAMPLES / "own_family.py").read_text().splitlines()) <= 60
    directory = write_two_ropes(tmp_path)
    for prompt in ([5, 91, 17], [3 * k % 300 + 2 for k in range(40)]):
        done = run("own_family.py", str(directory), "--prompt-ids", ",".join(map(str, prompt)))
        assert done.returncode == 0, done.stderr
        tokens = [int(token) for token in done.stdout.split(",")]
        assert tokens == reference_tokens(directory, prompt, 24)
        assert len(set(tokens)) > 4
