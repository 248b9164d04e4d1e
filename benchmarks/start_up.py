"""From the command to the first token: with nothing compiled yet, with a warm cache, and --help.

    python benchmarks/start_up.py

Every start is a process of its own on the `demo` model, cold ones with a fresh cache folder.
Writes benchmarks/results/start_up.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from frontend.machine import provenance  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "start_up.json"
COMMAND = [sys.executable, "-c", "from frontend.cli import main; main()"]
FIRST_TOKEN = ["generate", "demo", "--prompt", "hacker:", "--max-new-tokens", "1"]


def seconds(arguments: list[str], cache: str) -> float:
    """Wall time of one process, imports and exit included."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EVENT_TENSOR_CACHE": cache}
    begin = time.perf_counter()
    subprocess.run([*COMMAND, *arguments], env=environment, check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"cold": [], "warm": [], "help": []}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as cache:
            times["cold"].append(seconds(FIRST_TOKEN, cache))
            times["warm"].append(seconds(FIRST_TOKEN, cache))
            times["help"].append(seconds(["--help"], cache))
    result = {"model": "demo", "repeats": options.repeats,
              "median_seconds": {k: round(statistics.median(v), 3) for k, v in times.items()},
              "all_seconds": {k: [round(x, 3) for x in v] for k, v in times.items()},
              **provenance()}
    print(json.dumps(result, indent=1))
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
