"""What the cost model says of a decode step against what the step takes, on this machine.

    python benchmarks/cpu/cost_model.py MODEL... [--schedules static dynamic]

Every model runs with this machine's calibration and with the assumed machine (`generic_cpu`), whose
schedules may differ. `ratio` is simulated over measured: the median time between two tokens of the
fastest of a few generations of one request, without a trace, which would slow down short tasks.
With --foreign the cache first gets a record of another machine in the place of this one's.
Writes benchmarks/results/cost_model.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from frontend.compile import compile_decode_loop  # noqa: E402
from frontend.decode.decoder import Decoder  # noqa: E402
from frontend.report.machine import Contention, provenance  # noqa: E402
from frontend.report.random_prompt import random_prompt  # noqa: E402
from frontend.report.trace_summary import summarise  # noqa: E402
from persistent_runtime.cache.kept_file import KeptFile  # noqa: E402
from persistent_runtime.cpu.calibration.record import (  # noqa: E402
    CALIBRATIONS,
    GENERIC,
    VARIABLE,
    kept_calibrations,
    machine_key,
)

RESULTS = Path(__file__).parents[1] / "results"
PROMPT, NEW, CONTEXT = 32, 33, 128  # tokens
FOREIGN = {"bandwidth_gb_s": 21.0, "worker_gb_s": 12.0, "cache_gb_s": 60.0, "gflops": 90.0,
           "task_us": 0.5, "dependency_us": 0.6, "pop_us": 0.3}


def measure(model: str, schedule: str, machine: str, rounds: int) -> dict[str, Any]:
    """machine: "" for this one's calibration, or GENERIC."""
    os.environ[VARIABLE] = machine
    decoder = compile_decode_loop(model, backend="cpu", schedule=schedule, max_context=CONTEXT)
    prompt = random_prompt(decoder, PROMPT, 0)
    medians = []
    for _ in range(rounds + 1):  # the first touches memory
        result = decoder.generate(prompt, max_new_tokens=NEW, ignore_eos=True, temperature=0.0)
        medians.append(statistics.median(result.inter_token_ms))
    measured_us = min(medians[1:]) * 1e3
    simulated_us = simulate(decoder)
    return {"model": Path(model).name, "schedule": schedule,
            "machine": machine or "calibrated",
            "simulated_us": round(simulated_us, 1), "measured_us": round(measured_us, 1),
            "rounds_us": [round(ms * 1e3, 1) for ms in medians[1:]],
            "ratio": round(simulated_us / measured_us, 3), "target": asdict(decoder.kernel.target)}


def simulate(decoder: Decoder) -> float:
    """Microseconds of the middle step's schedule, for the experts that a traced step chose."""
    trace = decoder.generate(random_prompt(decoder, PROMPT, 0), max_new_tokens=NEW, ignore_eos=True,
                             temperature=0.0, trace_steps=NEW // 2).trace[-1]
    return float(summarise(trace, decoder.kernel.target)["simulated_us"])


def put_foreign_record(workers: int, dtype: str) -> None:
    """Where this machine's record belongs, one that another processor has made."""
    folder, _ = CALIBRATIONS.open()
    key = machine_key() | {"machine": "another", "workers": str(workers), "dtype": dtype}
    KeptFile(folder / f"workers-{workers}-{dtype}{CALIBRATIONS.suffix}", key).save(
        json.dumps(FOREIGN).encode())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--schedules", nargs="+", default=["static", "dynamic"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--foreign", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS / "cost_model.json")
    options = parser.parse_args()
    if options.foreign:
        from persistent_runtime.cpu.cores import available_cores

        for dtype in ("bfloat16", "float32"):
            put_foreign_record(available_cores(), dtype)
    contention = Contention()
    cases = []
    for model in options.models:
        for schedule in options.schedules:
            for machine in ("", GENERIC):
                cases.append(measure(model, schedule, machine, options.rounds))
                print(*(cases[-1][name] for name in ("model", "schedule", "machine", "simulated_us",
                                                     "measured_us", "ratio")), flush=True)
    record = {"cases": cases, "foreign_record_before": FOREIGN if options.foreign else None,
              "calibrations": kept_calibrations(), "prompt_tokens": PROMPT, "new_tokens": NEW,
              "other_programs_cpu_share": contention.share(), **provenance()}
    options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
