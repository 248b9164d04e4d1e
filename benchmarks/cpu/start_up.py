"""From the command to the first token: with nothing compiled yet, with a warm cache, and --help.

    python benchmarks/cpu/start_up.py

Every start is a process of its own, cold ones with a fresh cache folder: the whole command on the
`demo` model, and the phases of the warmup report on `demo` and on a published shape with random
weights. Writes benchmarks/results/start_up.json.
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
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.make_model import SHAPES, model_config, write_model  # noqa: E402
from frontend.report.machine import provenance  # noqa: E402
from frontend.report.warmup.runs import STARTS, Record, WarmupOptions, run_warmup  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "start_up.json"
COMMAND = [sys.executable, "-c", "from frontend.cli import main; main()"]
FIRST_TOKEN = ["generate", "demo", "--prompt", "hacker:", "--max-new-tokens", "1"]


# at least this share of a start in named phases; at most these seconds of a warm start
LEAST_ATTRIBUTED = 0.99
LARGEST_WARM_S = {"all but weights": 2.5, "code": 0.5}


def seconds(arguments: list[str], cache: str) -> float:
    """Wall time of one process, imports and exit included."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EVENT_TENSOR_CACHE": cache}
    begin = time.perf_counter()
    subprocess.run([*COMMAND, *arguments], env=environment, check=True, capture_output=True)
    return time.perf_counter() - begin


def phases(record: Record) -> dict[str, dict[str, float]]:
    """Of a warmup report: seconds by start. code: the kernel, from source or from the cache."""
    result = {}
    for name in STARTS:
        taken = {p["name"]: p["seconds"] for p in record[name]["phases"]}
        wall = record[name]["wall_s"]
        result[name] = {
            "wall": wall, "attributed": 1 - taken["unattributed"] / wall,
            "weights": taken["weights"], "all but weights": wall - taken["weights"],
            "code": sum(s for phase, s in taken.items() if phase.startswith("compile"))}
    return result


def measure_phases(model: str, repeats: int) -> dict[str, Any]:
    """Medians over starts, and whether they are what was aimed at."""
    rounds = [phases(run_warmup(WarmupOptions(model))) for _ in range(repeats)]
    medians = {name: {key: round(statistics.median(r[name][key] for r in rounds), 4)
                      for key in rounds[0][name]} for name in STARTS}
    return {"seconds": medians, "rounds": rounds, "met": {
        "attributed": min(r[name]["attributed"] for r in rounds for name in STARTS)
        >= LEAST_ATTRIBUTED,
        **{key: medians["warm"][key] <= most for key, most in LARGEST_WARM_S.items()}}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shape", default="qwen3-0.6b", choices=SHAPES)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"cold": [], "warm": [], "help": []}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as cache:
            times["cold"].append(seconds(FIRST_TOKEN, cache))
            times["warm"].append(seconds(FIRST_TOKEN, cache))
            times["help"].append(seconds(["--help"], cache))
    by_phase = {"demo": measure_phases("demo", options.repeats)}
    with tempfile.TemporaryDirectory() as folder:
        directory = write_model(model_config(options.shape), Path(folder))
        by_phase[options.shape] = measure_phases(str(directory), options.repeats)
    result = {"model": "demo", "repeats": options.repeats,
              "median_seconds": {k: round(statistics.median(v), 3) for k, v in times.items()},
              "all_seconds": {k: [round(x, 3) for x in v] for k, v in times.items()},
              "phases": by_phase, **provenance()}
    print(json.dumps(result, indent=1))
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
