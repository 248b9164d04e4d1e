"""Decode and prefill of the Qwen3-0.6B shape on this CPU, beside others on the same weights.

    python benchmarks/cpu/decode.py

Beside transformers at a short prompt and a long one; beside transformers, torch.compile and
llama.cpp (pip install 'event-tensor[bench]') at a context of 128 and of 2048 tokens, greedy and
sampled. Writes benchmarks/results/cpu_decode.json and prints Markdown. The model is made in a
temporary folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.make_model import SHAPES, model_config, write_model  # noqa: E402
from frontend.report.bench.table import to_markdown  # noqa: E402

RESULTS = Path(__file__).parents[1] / "results" / "cpu_decode.json"
ALL = "transformers,torch-compile,llama-cpp"
CASES = {
    "decode": {"prompt-tokens": 32, "new-tokens": 64, "compare": "transformers"},
    "prefill": {"prompt-tokens": 512, "new-tokens": 16, "compare": "transformers"},
    "context_128": {"prompt-tokens": 128, "new-tokens": 64, "compare": ALL},
    "context_2048": {"prompt-tokens": 128, "depth": 1920, "new-tokens": 64, "compare": ALL}}
# at most this share of each one's TPOT, and at least this share of the measured read bandwidth
TARGETS = {"transformers": 0.55, "torch-compile": 0.45, "llama-cpp": 1.0}
BANDWIDTH_TARGET = 0.85


def run_case(directory: Path, case: dict[str, Any], repeats: int) -> dict[str, Any]:
    """A process each, so that peak memory is each case's own."""
    options = [f"--{name}={value}" for name, value in case.items()]
    options += ["--sampled"] if case["compare"] == ALL else []
    done = subprocess.run(
        [sys.executable, "-c", "from frontend.cli import main; main()", "bench", str(directory),
         *options, "--repeats", str(repeats), "--json"],
        stdout=subprocess.PIPE, text=True, check=True)
    record: dict[str, Any] = json.loads(done.stdout)
    return {**record, "targets": targets(record)}


def targets(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Ours over theirs, and whether that is what was aimed at; likewise for bandwidth."""
    shares = {name: record["tpot_ms"]["p50"] / side["tpot_ms"]["p50"]
              for name, side in record["compare"].items()}
    found = {name: {"tpot_share": round(share, 3), "at_most": TARGETS[name],
                    "met": share <= TARGETS[name]} for name, share in shares.items()}
    fraction = record["bandwidth_fraction"]
    return {**found, "bandwidth": {"fraction": fraction, "at_least": BANDWIDTH_TARGET,
                                   "met": fraction >= BANDWIDTH_TARGET}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen3-0.6b", choices=SHAPES)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = {}  # of cases that are not measured now, what was there
    if options.output.exists() and set(options.cases) != set(CASES):
        results = json.loads(options.output.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        directory = write_model(model_config(options.shape), Path(folder) / options.shape)
        for name in options.cases:
            results[name] = run_case(directory, CASES[name], options.repeats)
            print(f"{to_markdown(results[name])}\n\ntargets: {results[name]['targets']}\n",
                  flush=True)
            # after every case: what is measured stays when a later one fails
            options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
