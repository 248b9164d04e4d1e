"""`event-tensor bench`: speed, memory bandwidth, and the correctness of the very same build.

Everything is measured in one process, in rounds, in an order that is random in each round: on a
shared machine the same code measured first and last can differ by a factor of two.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from event_tensor.errors import UserError
from frontend.bandwidth import ReadBandwidth
from frontend.compile import Progress, compile_decode_loop
from frontend.console import print_table
from frontend.decoder import Decoder
from frontend.machine import Contention, peak_rss_mb, provenance
from frontend.operators import DTYPE_BYTES
from frontend.resolve import resolve_model

BASELINES = ("transformers",)
QUIET_SHARE = 0.05  # more of the processor than this in others' hands, and figures are in doubt
CACHED_BYTES = 64 << 20  # a step that reads less may find it in the last-level cache
SETTLE_S = 0.05  # idle threads of an OpenMP pool spin for a while before they sleep
MAX_LOGIT_BYTES = 512 << 20  # of the logits compared with the reference, per side


@dataclass(frozen=True, slots=True)
class BenchOptions:
    model: str
    prompt_tokens: int = 128
    new_tokens: int = 128
    depth: int = 0  # tokens before the prompt; the time to the first token includes them
    repeats: int = 5
    workers: int | None = None
    dtype: str = "auto"
    schedule: str = "auto"
    seed: int = 0
    compare: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.compare:
            if name not in BASELINES:
                raise UserError(f"--compare {name} is not supported; supported: "
                                f"{', '.join(BASELINES)}")
        least = {"prompt-tokens": (self.prompt_tokens, 1), "new-tokens": (self.new_tokens, 2),
                 "repeats": (self.repeats, 1), "depth": (self.depth, 0)}
        for name, (value, minimum) in least.items():
            if value < minimum:
                raise UserError(f"--{name} is {value}; give at least {minimum}")


@dataclass(slots=True)
class Timings:
    """What one side took, over all rounds, in milliseconds."""

    ttft_ms: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)
    round_tpot_ms: list[float] = field(default_factory=list)  # median of each round
    round_rates: list[float] = field(default_factory=list)  # tokens per second of each round

    def add(self, start_ns: int, times_ns: list[int]) -> None:
        gaps = np.diff(np.array(times_ns, np.int64)) / 1e6
        self.ttft_ms.append((times_ns[0] - start_ns) / 1e6)
        self.gaps_ms += gaps.tolist()
        self.round_tpot_ms.append(float(np.median(gaps)))
        self.round_rates.append(len(gaps) * 1e3 / float(gaps.sum()))

    def record(self) -> dict[str, Any]:
        return {
            "ttft_ms": round(statistics.median(self.ttft_ms), 3),
            "tpot_ms": {f"p{p}": round(float(np.percentile(self.gaps_ms, p)), 4)
                        for p in (50, 90, 99)},
            "tpot_min_ms": round(min(self.gaps_ms), 4),
            "tokens_per_second": round(statistics.median(self.round_rates), 2)}


def run_bench(options: BenchOptions, progress: Progress | None = None) -> dict[str, Any]:
    """The JSON contract of `bench`. Raises UserError for options that cannot be used."""
    directory = resolve_model(options.model)
    length = options.depth + options.prompt_tokens
    decoder = compile_decode_loop(
        directory, schedule=options.schedule, dtype=options.dtype, workers=options.workers,
        max_context=length + options.new_tokens, progress=progress)
    prompt = random_prompt(decoder, length, options.seed)
    generation = decoder.generate(prompt, max_new_tokens=options.new_tokens, ignore_eos=True,
                                  temperature=0.0, repetition_penalty=1.0)
    memory_mb = peak_rss_mb()  # before the baseline and the bandwidth buffer are there
    contention = Contention()
    ours, baselines, bandwidths = measure(options, directory, decoder, prompt, progress)
    others = contention.share()
    record = ours.record()
    peak = statistics.median(bandwidths)
    step_bytes = decoder.weight_bytes + kv_bytes(decoder, length + options.new_tokens // 2)
    achieved = [step_bytes / tpot / 1e6 for tpot in ours.round_tpot_ms]
    # round by round: on shared machines the speed of memory itself changes from one to the next
    fractions = [gb_s / best for gb_s, best in zip(achieved, bandwidths, strict=True)]
    return {
        "model": directory.name, "dtype": decoder.dtype, "backend": decoder.backend,
        "schedule": decoder.schedule_name,
        "workers": decoder.num_workers, "prompt_tokens": options.prompt_tokens,
        "new_tokens": options.new_tokens, "depth": options.depth, "repeats": options.repeats,
        "seed": options.seed, **record, "step_bytes": step_bytes,
        "bandwidth_gb_s": round(statistics.median(achieved), 2),
        "peak_bandwidth_gb_s": round(peak, 2),
        "bandwidth_fraction": round(statistics.median(fractions), 3), "peak_rss_mb": memory_mb,
        "compilations": decoder.compilations, "other_programs_cpu_share": others,
        "correctness": check(directory, decoder, prompt, generation.output_ids),
        "compare": {name: compare(timings.record(), record) for name, timings in baselines.items()},
        **provenance()}


def random_prompt(decoder: Decoder, length: int, seed: int) -> list[int]:
    ids = np.random.default_rng(seed).integers(0, decoder.config.vocab_size, length)
    return [int(token) for token in ids]


def kv_bytes(decoder: Decoder, context: int) -> int:
    """Bytes of the KV cache that a step at this context reads; windows see less."""
    config = decoder.config
    positions = sum(min(context, window or context) for window in config.sliding_window)
    return 2 * positions * config.num_kv_heads * config.head_dim * DTYPE_BYTES[decoder.dtype]


def measure(options: BenchOptions, directory: Path, decoder: Decoder, prompt: list[int],
            progress: Progress | None) -> tuple[Timings, dict[str, Timings], list[float]]:
    """Rounds over all sides: our timings, the baselines', and read bandwidth in GB/s per round.

    No side has a running thread while another one is measured.
    """
    ours, baselines = Timings(), {name: Timings() for name in options.compare}
    bandwidths: list[float] = []  # per round, the better of before and after ours
    reader = ReadBandwidth(decoder.num_workers)

    def run_ours() -> None:
        before = reader.measure_gb_s()
        result = decoder.generate(prompt, max_new_tokens=options.new_tokens, ignore_eos=True,
                                  temperature=0.0, repetition_penalty=1.0)
        ours.add(result.start_ns, result.token_times_ns)
        bandwidths.append(max(before, reader.measure_gb_s()))

    sides: list[Callable[[], None]] = [run_ours]
    if "transformers" in options.compare:
        import torch

        from frontend.reference import generate_timed, load_transformers

        torch.set_num_threads(decoder.num_workers)
        model = load_transformers(directory, decoder.dtype)
        generate_timed(model, prompt, 2)

        def run_transformers() -> None:
            _, start_ns, times_ns = generate_timed(model, prompt, options.new_tokens)
            baselines["transformers"].add(start_ns, times_ns)

        sides.append(run_transformers)
    order = random.Random(options.seed)
    gc.collect()
    for done in range(options.repeats):
        for side in order.sample(sides, len(sides)):
            time.sleep(SETTLE_S)
            side()
        if progress:
            progress("measuring", done + 1, options.repeats)
    return ours, baselines, bandwidths


def compare(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """`ratio`: their TPOT p50 over ours, so above 1 we are faster; `ttft_ratio` likewise."""
    return {**theirs, "ratio": round(theirs["tpot_ms"]["p50"] / ours["tpot_ms"]["p50"], 3),
            "ttft_ratio": round(theirs["ttft_ms"] / ours["ttft_ms"], 3)}


def check(directory: Path, decoder: Decoder, prompt: list[int], output: list[int]
          ) -> dict[str, Any]:
    """Our tokens against the float32 reference, which is fed our tokens; then the logits.

    tokens_compared: how many of the new tokens fit MAX_LOGIT_BYTES of logits.
    """
    from frontend.reference import last_logits, load_transformers

    # our logits come for every position, the prompt's included
    fit = MAX_LOGIT_BYTES // (4 * decoder.config.vocab_size) - len(prompt)
    compared = max(1, min(len(output), fit))
    fed = [*prompt, *output[:compared - 1]]
    logits = decoder.logits(fed)[-compared:]  # [compared, vocab]
    reference = last_logits(load_transformers(directory, "float32"), fed, compared)
    equal = int((reference.argmax(-1) == np.array(output[:compared])).sum())
    return {"reference": "transformers float32", "tokens_compared": compared,
            "tokens_equal": equal,
            "max_abs_logit_error": float(f"{np.abs(logits - reference).max():.3g}")}


def show(record: dict[str, Any]) -> None:
    """A table of both sides, with the correctness right below the speed."""
    def row(name: str, side: dict[str, Any], *rest: str) -> list[str]:
        tpot = side["tpot_ms"]
        return [name, f"{side['ttft_ms']:.1f}", *(f"{tpot[p]:.2f}" for p in ("p50", "p90", "p99")),
                f"{side['tpot_min_ms']:.2f}", f"{side['tokens_per_second']:.1f}", *rest]

    rows = [row("event-tensor", record, "1.00")]
    rows += [row(name, side, f"{side['ratio']:.2f}") for name, side in record["compare"].items()]
    depth = f" @ d{record['depth']}" if record["depth"] else ""
    print_table(
        f"{record['model']} {record['dtype']}, pp{record['prompt_tokens']} "
        f"tg{record['new_tokens']}{depth}, {record['workers']} workers, {record['cpu']}",
        ["batch 1", "TTFT ms", "TPOT p50", "p90", "p99", "min", "tok/s", "TPOT ratio"], rows)
    cached = " (what fits a cache is read faster)" if record["step_bytes"] < CACHED_BYTES else ""
    print(f"{record['bandwidth_gb_s']:.1f} GB/s, {record['bandwidth_fraction']:.0%} of the "
          f"measured peak of {record['peak_bandwidth_gb_s']:.1f} GB/s{cached}; peak memory "
          f"{record['peak_rss_mb']:.0f} MB")
    if (record["other_programs_cpu_share"] or 0) > QUIET_SHARE:
        print(f"other programs used {record['other_programs_cpu_share']:.0%} of the processor "
              f"meanwhile: do not quote these figures, the ratios least of all")
    found = record["correctness"]
    print(f"{found['tokens_equal']} of {found['tokens_compared']} tokens equal those of "
          f"{found['reference']}; largest logit error {found['max_abs_logit_error']:g}")
