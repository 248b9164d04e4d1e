"""`event-tensor trace`: a timeline of the real kernel, its summary, and what tracing costs."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from event_tensor.errors import UserError
from frontend.compile import Progress, compile_decode_loop
from frontend.decode.decoder import Decoder
from frontend.report.bench.table import QUIET_SHARE
from frontend.report.console import print_table
from frontend.report.layers import layer_record
from frontend.report.machine import Contention, provenance
from frontend.report.random_prompt import random_prompt
from frontend.report.trace_summary import summarise
from persistent_runtime.trace.chrome_trace import chrome_trace, write_trace
from persistent_runtime.trace.record import SegmentTrace


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """rounds: of the comparison of traced with untraced runs."""

    model: str
    output: Path | None = None
    prompt_tokens: int = 32
    steps: int = 8
    rounds: int = 5
    backend: str = "auto"
    schedule: str = "auto"
    workers: int | None = None
    dtype: str = "auto"
    kv_dtype: str = "auto"

    def __post_init__(self) -> None:
        for name, value, minimum in (("prompt-tokens", self.prompt_tokens, 1),
                                     ("steps", self.steps, 2), ("rounds", self.rounds, 1)):
            if value < minimum:
                raise UserError(f"--{name} is {value}; give at least {minimum}")
        if self.output is not None and not self.output.absolute().parent.is_dir():
            raise UserError(f"there is no directory {self.output.absolute().parent} to write "
                            f"{self.output.name} to; create it")


def run_trace(options: TraceOptions, progress: Progress | None = None) -> dict[str, Any]:
    """Writes the trace file, if one is wanted; returns the summary."""
    decoder = compile_decode_loop(
        options.model, backend=options.backend, schedule=options.schedule, dtype=options.dtype,
        kv_dtype=options.kv_dtype, workers=options.workers,
        max_context=options.prompt_tokens + options.steps + 1, progress=progress)
    prompt = random_prompt(decoder, options.prompt_tokens, seed=0)
    contention = Contention()
    overhead, traces = measure(decoder, prompt, options)
    others = contention.share()
    summary = {
        "model": options.model, "backend": decoder.backend, "dtype": decoder.dtype,
        "prompt_tokens": options.prompt_tokens, **summarise(traces[-1], decoder.kernel.target),
        "tracing": overhead, "other_programs_cpu_share": others,
        "file": str(options.output) if options.output else None,
        **provenance()}
    if options.output is not None:
        try:
            write_trace(chrome_trace(traces, summary, layer_record), options.output)
        except OSError as error:
            raise UserError(f"cannot write {options.output}: {error.strerror}; give another "
                            f"file to -o") from None
    return summary


def measure(decoder: Decoder, prompt: list[int], options: TraceOptions
            ) -> tuple[dict[str, Any], list[SegmentTrace]]:
    """Time per token with and without a trace, in turns; and the trace of the median turn.

    overhead: the median over rounds of traced / untraced - 1; overhead_of_fastest: of the fastest
    round of each, which says more where other programs disturb.
    """
    def run(trace_steps: int) -> tuple[float, list[SegmentTrace]]:
        # the first token comes from prefill, so one more than there are decode steps
        result = decoder.generate(prompt, max_new_tokens=options.steps + 1, ignore_eos=True,
                                  temperature=0.0, trace_steps=trace_steps)
        return float(np.median(result.inter_token_ms)) * 1e3, result.trace

    run(0)  # schedules and pages of the first run
    runs: dict[int, list[tuple[float, list[SegmentTrace]]]] = {0: [], options.steps: []}
    for number in range(options.rounds):
        for trace_steps in (0, options.steps) if number % 2 else (options.steps, 0):
            runs[trace_steps].append(run(trace_steps))
    plain, traced = ([us for us, _ in runs[k]] for k in (0, options.steps))
    ratios = [a / b for a, b in zip(traced, plain, strict=True)]
    _, trace = sorted(runs[options.steps], key=lambda r: r[0])[(options.rounds - 1) // 2]
    return {"tpot_us": round(statistics.median(plain), 3),
            "traced_tpot_us": round(statistics.median(traced), 3),
            "overhead": round(statistics.median(ratios) - 1, 4),
            "overhead_of_fastest": round(min(traced) / min(plain) - 1, 4),
            "rounds": options.rounds}, trace


def show(record: dict[str, Any]) -> None:
    """Tables of device functions and workers, and the rest in sentences."""
    print_table(
        f"{record['model']} {record['dtype']}, {record['policy']}: {record['tasks']} tasks in "
        f"{record['step_us']:.1f} µs per decode step, {record['gb_s']:.1f} GB/s",
        ["device function", "tasks", "µs", "share", "µs/task", "MB", "GB/s", "critical"],
        [[f["function"], f["tasks"], f"{f['run_us']:.1f}", f"{f['share']:.1%}",
          f"{f['median_task_us']:.2f}", f"{f['bytes'] / 1e6:.2f}", f"{f['gb_s']:.1f}",
          f["on_critical_path"]] for f in record["functions"]])
    print_table("workers", ["worker", "busy µs", "waiting µs", "waiting"],
                [[w["worker"], f"{w['busy_us']:.1f}", f"{w['wait_us']:.1f}",
                  f"{w['wait_share']:.1%}"] for w in record["workers"]])
    path = record["critical_path"]
    print(f"critical path: {path['tasks']} tasks, {path['run_us']:.1f} µs in tasks and "
          f"{path['between_us']:.1f} µs between them, of a step of {record['step_us']:.1f} µs")
    print(f"simulated {record['simulated_us']:.1f} µs, measured "
          f"{record['measured_over_simulated']:.2f} times that")


def show_cost(record: dict[str, Any]) -> None:
    """What tracing costs, and where the file is."""
    tracing = record["tracing"]
    print(f"tracing costs {tracing['overhead']:+.1%} of the time per token "
          f"({tracing['traced_tpot_us']:.1f} µs against {tracing['tpot_us']:.1f} µs, "
          f"{tracing['rounds']} rounds in turns; the fastest of each "
          f"{tracing['overhead_of_fastest']:+.1%})")
    if (record["other_programs_cpu_share"] or 0) > QUIET_SHARE:
        print(f"other programs used {record['other_programs_cpu_share']:.0%} of the processor "
              f"meanwhile: do not quote these figures")
    if record["file"]:
        print(f"wrote {record['file']}; open it at https://ui.perfetto.dev (blank between slices "
              f"is the worker's own work: fetching rows, notifying)")
