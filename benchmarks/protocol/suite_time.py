"""The processor time of every test, its child processes included.

    python benchmarks/protocol/suite_time.py -n 2 --dist loadfile
    python benchmarks/protocol/suite_time.py --each tests/persistent_runtime
    python benchmarks/protocol/suite_time.py --exhaustive

What follows the options of this script goes to pytest. With `--each`, every test file runs in a
pytest process of its own, one after the other; with `--exhaustive` those files do of which a usual
run takes a sample, in full (tests/support/cases.py). Prints the dearest tests and files, writes a
result file, and ends as pytest ends. No test knows of these times.

The module is also the pytest plugin that writes one line for each test: processor seconds of this
process, all its threads, and its children. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
FOLDER = "SUITE_TIME_FOLDER"  # where the plugin writes; between this script and its pytest alone
DEAREST = 30


def processor_s(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def spent_s() -> float:
    """Of this process and of its children, those that still run among them."""
    running = sum(map(running_s, Path("/proc/self/task").glob("*/children")))
    return processor_s(resource.RUSAGE_SELF) + processor_s(resource.RUSAGE_CHILDREN) + running


def running_s(children: Path) -> float:
    """Processor seconds of processes by number, and of what they have waited for."""
    ticks = 0
    for child in children.read_text(encoding="ascii").split():
        with suppress(OSError):  # it has just ended
            stat = Path(f"/proc/{child}/stat").read_text(encoding="utf-8")
            ticks += sum(map(int, stat.rpartition(")")[2].split()[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    begin = spent_s()
    result = yield
    with open(Path(os.environ[FOLDER]) / f"{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps([item.nodeid, round(spent_s() - begin, 3)]) + "\n")
    return result


def run_pytest(arguments: list[str]) -> tuple[int, float, dict[str, float]]:
    """The exit status, processor seconds in all, and processor seconds of each test."""
    with tempfile.TemporaryDirectory() as folder:
        before = processor_s(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "benchmarks.protocol.suite_time",
                   *arguments]
        paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        code = subprocess.run(command, cwd=ROOT, check=False, env={
            **os.environ, FOLDER: folder, "PYTHONPATH": paths}).returncode
        spent = processor_s(resource.RUSAGE_CHILDREN) - before
        lines = [json.loads(line) for file in Path(folder).iterdir()
                 for line in file.read_text(encoding="utf-8").splitlines()]
    return code, spent, dict(lines)


def test_files(arguments: list[str]) -> list[str]:
    found = [file for argument in arguments or ["tests"]
             for path in [ROOT / argument.split("::")[0]]
             for file in ([path] if path.is_file() else sorted(path.rglob("test_*.py")))]
    return [str(file.relative_to(ROOT)) for file in found]


def has_more_cases(file: str) -> bool:
    """Whether a usual run leaves cases of this file out."""
    return any(text in (ROOT / file).read_text(encoding="utf-8")
               for text in ("from cases import", "mark.exhaustive"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", action="store_true", help="a process of its own for each file")
    parser.add_argument("--exhaustive", action="store_true", help="every case of every claim")
    parser.add_argument("--output", type=Path)
    options, arguments = parser.parse_known_args()
    begin, commands = time.perf_counter(), [arguments]
    if options.exhaustive:
        commands = [["--exhaustive", file] for file in test_files(arguments)
                    if has_more_cases(file)]
    elif options.each:
        commands = [[file] for file in test_files(arguments)]
    runs = {" ".join(command) or "all": run_pytest(command) for command in commands}
    tests = {name: seconds for _, _, times in runs.values() for name, seconds in times.items()}
    files: Counter[str] = Counter()
    for name, seconds in tests.items():
        files[name.split("::")[0]] += seconds
    result: dict[str, Any] = {
        "arguments": sys.argv[1:], "processes_of_pytest": len(runs), "tests": len(tests),
        "processor_minutes": round(sum(spent for _, spent, _ in runs.values()) / 60, 2),
        "wall_minutes": round((time.perf_counter() - begin) / 60, 2),
        "exit_status": max(code for code, _, _ in runs.values()),
        "processor_s_by_file": {name: round(s, 1) for name, s in files.most_common()},
        "processor_s_of_the_dearest_tests": dict(
            sorted(tests.items(), key=lambda pair: -pair[1])[:DEAREST]),
        "python": platform.python_version(), "machine": platform.machine(),
        "cores": len(os.sched_getaffinity(0))}
    for table in ("processor_s_of_the_dearest_tests", "processor_s_by_file"):
        print(table.replace("_", " "))
        for name, seconds in list(result[table].items())[:DEAREST]:
            print(f"{seconds:8.1f}  {name}")
    print(f"{result['tests']} tests, {result['processor_minutes']} processor minutes, "
          f"{result['wall_minutes']} minutes")
    output = options.output or RESULTS / (
        "suite_exhaustive.json" if options.exhaustive else "suite_time.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return int(result["exit_status"])


if __name__ == "__main__":
    sys.exit(main())
