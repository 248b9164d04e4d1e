"""The README's figures as Markdown, from the committed result files.

    python benchmarks/report.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def cpu_decode() -> str:
    """Decode and prefill beside transformers, with the correctness of the same run."""
    results = load("cpu_decode")
    rows = ["| Qwen3-0.6B shape, random bf16 weights, batch 1 | Event Tensor | transformers eager "
            "| ours / theirs |", "|---|---|---|---|"]
    decode, long = results["decode"], results["prefill"]
    baseline = decode["compare"]["transformers"]

    def row(name: str, ours: float, theirs: float) -> str:
        return f"| {name} | {ours:.1f} ms | {theirs:.1f} ms | {ours / theirs:.2f} |"

    rows.append(row(
        f"TPOT p50, {decode['prompt_tokens']} prompt + {decode['new_tokens']} new tokens",
        decode["tpot_ms"]["p50"], baseline["tpot_ms"]["p50"]))
    rows.append(row(f"TTFT, {decode['prompt_tokens']} prompt tokens", decode["ttft_ms"],
                    baseline["ttft_ms"]))
    rows.append(row(f"TTFT, {long['prompt_tokens']} prompt tokens", long["ttft_ms"],
                    long["compare"]["transformers"]["ttft_ms"]))
    found, versions = decode["correctness"], decode["versions"]
    rows += ["", (
        f"{decode['workers']} workers on {decode['cpu']}; {decode['bandwidth_gb_s']:.0f} GB/s of a "
        f"measured read bandwidth of {decode['peak_bandwidth_gb_s']:.0f} GB/s "
        f"({decode['bandwidth_fraction']:.0%}); peak memory {decode['peak_rss_mb']:.0f} MB; "
        f"{found['tokens_equal']} of {found['tokens_compared']} tokens equal those of "
        f"{found['reference']}, largest logit error {found['max_abs_logit_error']:g}; medians of "
        f"{decode['repeats']} interleaved rounds, torch {versions['torch']}, transformers "
        f"{versions['transformers']}, {decode['date'][:10]}. Shared machines are noisy: TPOT p90 "
        f"was {decode['tpot_ms']['p90']:.1f} ms and {baseline['tpot_ms']['p90']:.1f} ms.")]
    return "\n".join(rows)


def scheduling() -> str:
    """Everything that happens on the host for a new shape, at the size of an 8B model."""
    result = load("scheduling_at_size")
    seconds = result["median_seconds"]
    steps = ("instantiate", "verify_table", "critical_path", "prune_waits", "verify_schedule")
    return (
        f"A new shape of an 8B model's step on {result['workers']} workers ({result['tasks']:,} "
        f"tasks) is instantiated, proved free of races, scheduled, pruned and proved again in "
        f"{sum(seconds[step] for step in steps):.2f} s; deriving its events takes "
        f"{seconds['derive'] * 1e3:.0f} ms, once.")


def start_up() -> str:
    """From the command to the first token of the demo model."""
    result = load("start_up")
    seconds = result["median_seconds"]
    return (
        f"From the command to the first token of `demo`, imports included: {seconds['warm']:.1f} s "
        f"with a warm cache, {seconds['cold']:.1f} s when everything must be compiled first; "
        f"`--help` takes {seconds['help']:.2f} s.")


def fuzz() -> str:
    """The protocol over random graphs."""
    result = load("fuzz_protocol")
    return (f"{result['graphs']:,} random graphs, {result['counts']['interleavings']:,} "
            f"interleavings and {result['counts']['mutations']:,} mutated tables and schedules: "
            f"{result['failures']} failures.")


def gpu_decode() -> str:
    """Decode steps on a GPU beside PyTorch under CUDA graphs, with the errors of the same run."""
    result, measured = load("gpu_decode"), load("dependency_gpu")
    dependency = measured["microseconds"]
    rows = ["| batch 1, random bf16 weights | floor | Event Tensor | PyTorch, CUDA graphs | "
            "theirs / ours | our largest logit error, theirs |", "|---|---|---|---|---|---|"]
    for case in result["cases"]:
        ours, theirs = (case["speed"][side] for side in ("event_tensor", "cuda_graphs"))
        errors = case["correctness"]["sides"]
        rows.append(
            f"| {case['shape']}, context {case['context']} | {case['floor_ms']:.3f} ms | "
            f"{ours['ms_per_step']:.3f} ms ({ours['fraction_of_measured']:.0%} of bandwidth) | "
            f"{theirs['ms_per_step']:.3f} ms | {theirs['ratio']:.2f} | "
            f"{errors['event_tensor']['max_abs_logit_error']:.3f}, "
            f"{errors['cuda_graphs']['max_abs_logit_error']:.3f} |")
    versions = result["versions"]
    rows += ["", (
        f"One {result['gpu']}, {result['bandwidth_gb_s']['read']:.0f} GB/s measured, which makes "
        f"the floor; torch {versions['torch']}, Triton {versions['triton']}, "
        f"{result['date'][:10]}, commit {result['commit'][:7]}. One dependency between two workers "
        f"costs "
        f"{dependency['dependency_between_2_workers']:.2f} us, one of all workers on all "
        f"{dependency['all_to_all_dependency']:.2f} us (commit {measured['commit'][:7]}).")]
    return "\n".join(rows)


def schedules() -> str:
    """The same tiles under every schedule, and what a queue costs."""
    result = load("schedules")
    rows = ["| ms per step, same tiles | unfused | static | dynamic | hybrid | auto |",
            "|---|---|---|---|---|---|"]
    for case in result["cases"]:
        values = " | ".join(f"{case['ms'][name]:.2f}"
                            for name in ("unfused", "static", "dynamic", "hybrid", "auto"))
        rows.append(f"| {case['case']} | {values} |")
    costs, sampling = result["costs_us"], load("sampling_cost")
    rows += ["", (
        f"{result['workers']} workers on {result['cpu']}, medians of {result['rounds']} "
        f"interleaved rounds; the layer is one of Qwen3-30B-A3B, {result['experts']} experts. "
        f"Rounds differ by more than ten percent there, so auto cannot be told from the best. A "
        f"dependency costs "
        f"{costs['dependency_us']:.3f} us, a pop {costs['pop_us']:.3f} us, a push "
        f"{costs['push_us']:.3f} us. Sampling costs {sampling['cost']:.1%} of TPOT over greedy.")]
    return "\n".join(rows)


def main() -> None:
    print(cpu_decode(), gpu_decode(), schedules(), start_up(), scheduling(), fuzz(), sep="\n\n")


if __name__ == "__main__":
    main()
