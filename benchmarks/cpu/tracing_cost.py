"""What tracing costs per token, and where a decode step of a published shape goes.

    python benchmarks/cpu/tracing_cost.py

Traced and untraced generations take turns. Writes benchmarks/results/tracing_cost.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.make_model import SHAPES, model_config, write_model  # noqa: E402
from frontend.report.trace import TraceOptions, run_trace, show, show_cost  # noqa: E402

RESULT = Path(__file__).parents[1] / "results" / "tracing_cost.json"
LARGEST_COST = 0.05  # of TPOT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen3-0.6b", choices=SHAPES)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = write_model(model_config(options.shape), Path(folder))
        record = run_trace(TraceOptions(str(directory), None, options.prompt_tokens, options.steps,
                                        options.rounds))
    record |= {"model": options.shape, "largest_cost": LARGEST_COST,
               "met": record["tracing"]["overhead"] <= LARGEST_COST}
    show(record)
    show_cost(record)
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
