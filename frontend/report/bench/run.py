"""`event-tensor bench`: speed, memory bandwidth, and the correctness of the very same build.

Everything is measured in rounds, in an order that is random in each round: on a shared machine the
same code measured first and last can differ by a factor of two.
"""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from event_tensor.errors import UserError
from frontend.compile import Progress, compile_decode_loop
from frontend.decode.decoder import Decoder
from frontend.decode.generation import percentiles_ms
from frontend.model_files.directories import temporary_folder
from frontend.model_files.resolve import resolve_model
from frontend.report.bench.bandwidth import bandwidth_reader
from frontend.report.bench.baselines import require_available, require_known
from frontend.report.bench.baselines.engine import GREEDY, SAMPLED, Work
from frontend.report.bench.check import judge, save_logits
from frontend.report.bench.sides import OURS, Ours, Side, start_baselines
from frontend.report.machine import Contention, peak_rss_mb, provenance, wait_until_idle
from frontend.report.random_prompt import random_prompt
from persistent_runtime.backends import find_backend
from persistent_runtime.formats import stored_bytes


@dataclass(frozen=True, slots=True)
class BenchOptions:
    model: str
    prompt_tokens: int = 128
    new_tokens: int = 128
    depth: int = 0  # tokens in the KV cache before the prompt
    repeats: int = 5
    workers: int | None = None
    backend: str = "auto"
    dtype: str = "auto"
    schedule: str = "auto"
    seed: int = 0
    sampled: bool = False  # sampled rounds beside the greedy ones
    compare: tuple[str, ...] = ()
    kv_dtype: str = "auto"

    def __post_init__(self) -> None:
        require_known(self.compare)
        least = {"prompt-tokens": (self.prompt_tokens, 1), "new-tokens": (self.new_tokens, 2),
                 "repeats": (self.repeats, 1), "depth": (self.depth, 0)}
        for name, (value, minimum) in least.items():
            if value < minimum:
                raise UserError(f"--{name} is {value}; give at least {minimum}")


@dataclass(slots=True)
class Timings:
    """What one side took in one kind of round, in milliseconds."""

    prompt_tokens: int
    ttft_ms: list[float] = field(default_factory=list)  # of each round
    gaps_ms: list[float] = field(default_factory=list)  # between tokens, of all rounds
    round_tpot_ms: list[float] = field(default_factory=list)  # median of each round
    round_rates: list[float] = field(default_factory=list)  # tokens per second of each round

    def add(self, start_ns: int, times_ns: list[int]) -> None:
        gaps = np.diff(np.array(times_ns, np.int64)) / 1e6
        self.ttft_ms.append((times_ns[0] - start_ns) / 1e6)
        self.gaps_ms += gaps.tolist()
        self.round_tpot_ms.append(float(np.median(gaps)))
        self.round_rates.append(len(gaps) * 1e3 / float(gaps.sum()))

    def record(self, step_bytes: int, bandwidths: list[float]) -> dict[str, Any]:
        """bandwidths: GB/s that memory gave in each round. On shared machines its speed itself
        changes from one round to the next, so fractions are taken round by round."""
        achieved = [step_bytes / tpot / 1e6 for tpot in self.round_tpot_ms]
        fractions = [gb_s / best for gb_s, best in zip(achieved, bandwidths, strict=True)]
        return {
            "ttft_ms": round(statistics.median(self.ttft_ms), 3),
            "tpot_ms": percentiles_ms(np.array(self.gaps_ms)),
            "tpot_min_ms": round(min(self.gaps_ms), 4),
            "tokens_per_second": round(statistics.median(self.round_rates), 2),
            "pp_tokens_per_second": spread([self.prompt_tokens * 1e3 / t for t in self.ttft_ms]),
            "tg_tokens_per_second": spread(self.round_rates),
            "bandwidth_gb_s": round(statistics.median(achieved), 2),
            "bandwidth_fraction": round(statistics.median(fractions), 3)}


def spread(values: list[float]) -> dict[str, float]:
    return {"mean": round(statistics.mean(values), 2),
            "std": round(statistics.stdev(values), 2) if len(values) > 1 else 0.0}


@dataclass(slots=True)
class Measured:
    """All rounds: by side and kind of round, what it took and the tokens of its last round."""

    timings: dict[tuple[str, str], Timings]
    outputs: dict[tuple[str, str], list[int]]
    peak_rss_mb: dict[str, float]
    bandwidths: list[float]  # GB/s per round, the better of before and after ours


def run_bench(options: BenchOptions, progress: Progress | None = None) -> dict[str, Any]:
    """The JSON contract of `bench`. Raises UserError for options that cannot be used."""
    device = find_backend(options.backend).name
    for name in options.compare:
        require_available(name, device)
    directory = resolve_model(options.model)
    length = options.depth + options.prompt_tokens
    decoder = compile_decode_loop(
        directory, backend=device, schedule=options.schedule, dtype=options.dtype,
        kv_dtype=options.kv_dtype, workers=options.workers,
        max_context=length + options.new_tokens, progress=progress)
    prompt = random_prompt(decoder, length, options.seed)
    work = Work(OURS, str(directory), decoder.dtype, decoder.num_workers, device,
                prompt[:options.depth], prompt[options.depth:], options.new_tokens,
                options.sampled, options.seed)
    ours = Ours(decoder, work)
    for kind in work.samplings:
        ours.run(kind)
    memory_mb = peak_rss_mb()  # before the baselines' files and the bandwidth buffer are there
    with temporary_folder("a measurement") as folder:
        with start_baselines(options.compare, work, Path(folder), progress) as baselines:
            processes = [side.pid for side in baselines.values()]
            contention = Contention(processes)
            sides: dict[str, Side] = {OURS: ours, **baselines}
            measured = measure(options, work, decoder, sides, processes, progress)
            others = contention.share()
            save_logits(sides, measured.outputs, decoder.config.vocab_size, Path(folder))
            ready = {name: side.ready for name, side in baselines.items()}
        verdicts = judge(work, measured.outputs, Path(folder))
    step_bytes = decoder.weight_bytes + kv_bytes(decoder, length + options.new_tokens // 2)

    def side_record(name: str) -> dict[str, Any]:
        kinds = {kind: {**measured.timings[name, kind].record(step_bytes, measured.bandwidths),
                        "correctness": verdicts[name, kind]} for kind in work.samplings}
        if options.sampled:
            kinds[SAMPLED]["sampling"] = work.samplings[SAMPLED].summary()
            kinds[GREEDY]["sampled"] = kinds[SAMPLED]
        return kinds[GREEDY]

    record = side_record(OURS)
    return {
        "model": directory.name, "dtype": decoder.dtype, "backend": decoder.backend,
        "schedule": decoder.schedule_name, "workers": decoder.num_workers,
        "prompt_tokens": options.prompt_tokens, "new_tokens": options.new_tokens,
        "depth": options.depth, "repeats": options.repeats, "seed": options.seed, **record,
        "step_bytes": step_bytes,
        "peak_bandwidth_gb_s": round(statistics.median(measured.bandwidths), 2),
        "peak_rss_mb": memory_mb, "compilations": decoder.compilations,
        "other_programs_cpu_share": others,
        "compare": {name: {**compare(side_record(name), record), **ready[name],
                           "peak_rss_mb": measured.peak_rss_mb[name]}
                    for name in options.compare},
        **provenance()}


def kv_bytes(decoder: Decoder, context: int) -> int:
    """Bytes of the KV cache that a step at this context reads; windows see less."""
    config = decoder.config
    positions = sum(min(context, layer.window or context) for layer in config.layers)
    return 2 * positions * config.num_kv_heads * stored_bytes((config.head_dim,), decoder.kv_dtype)


def measure(options: BenchOptions, work: Work, decoder: Decoder, sides: Mapping[str, Side],
            processes: list[int], progress: Progress | None) -> Measured:
    """Rounds over all sides and kinds. No side's threads run while another one is measured."""
    turns = [(name, kind) for name in sides for kind in work.samplings]
    measured = Measured({turn: Timings(options.prompt_tokens) for turn in turns}, {}, {}, [])
    reader = bandwidth_reader(decoder.backend, decoder.num_workers)
    order = random.Random(options.seed)
    gc.collect()
    for done in range(options.repeats):
        for turn in order.sample(turns, len(turns)):
            if not wait_until_idle(processes):
                raise UserError(f"one of {', '.join(options.compare)} keeps the processor busy "
                                f"between its rounds; measure them one by one")
            name, kind = turn
            is_ours = turn == (OURS, GREEDY)
            before = reader.measure_gb_s() if is_ours else 0.0
            result = sides[name].run(kind)
            if is_ours:
                measured.bandwidths.append(max(before, reader.measure_gb_s()))
            measured.timings[turn].add(result["start_ns"], result["token_times_ns"])
            measured.outputs[turn] = result["output_ids"]
            measured.peak_rss_mb[name] = result.get("peak_rss_mb", 0.0)
        if progress:
            progress("measuring", done + 1, options.repeats)
    return measured


def compare(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """`ratio`: their TPOT p50 over ours, so above 1 we are faster; `ttft_ratio` likewise."""
    if SAMPLED in theirs:
        theirs = {**theirs, SAMPLED: compare(theirs[SAMPLED], ours[SAMPLED])}
    return {**theirs, "ratio": round(theirs["tpot_ms"]["p50"] / ours["tpot_ms"]["p50"], 3),
            "ttft_ratio": round(theirs["ttft_ms"] / ours["ttft_ms"], 3)}
