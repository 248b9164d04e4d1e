"""Decode and prefill of the Qwen3-0.6B shape on this CPU, beside transformers on the same weights.

    python benchmarks/cpu_decode.py

Writes benchmarks/results/cpu_decode.json. The model is made in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.make_model import SHAPES, model_config, write_model  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "cpu_decode.json"
CASES = {"decode": (32, 64), "prefill": (512, 16)}  # prompt tokens, new tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen3-0.6b", choices=SHAPES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        directory = write_model(model_config(options.shape), Path(folder) / options.shape)
        for name, (prompt_tokens, new_tokens) in CASES.items():
            done = subprocess.run(  # a process each, so that peak memory is each case's own
                [sys.executable, "-c", "from frontend.cli import main; main()", "bench",
                 str(directory), "--prompt-tokens", str(prompt_tokens), "--new-tokens",
                 str(new_tokens), "--repeats", str(options.repeats), "--compare", "transformers",
                 "--json"], stdout=subprocess.PIPE, text=True, check=True)
            results[name] = json.loads(done.stdout)
            print(name, json.dumps(results[name], indent=1), flush=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
