"""The figures of docs/measured.md, or of the README, as Markdown from the committed result files.

    python benchmarks/report.py
    python benchmarks/report.py --readme
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"
NUMBERS = {4: "four", 5: "five"}


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    return [f"| {' | '.join(row)} |" if row else "|" + "---|" * len(header)
            for row in (header, (), *rows)]


SIDES = {"transformers": "transformers eager", "torch-compile": "torch.compile",
         "llama-cpp": "llama.cpp"}


def cpu_decode() -> str:
    """Decode and prefill beside others on the same weights; the correctness of the same run."""
    results = load("cpu_decode")
    rows = [f"| Qwen3-0.6B shape, random bf16 weights, batch 1 | Event Tensor | "
            f"{' | '.join(SIDES.values())} |", "|---|---|" + "---|" * len(SIDES)]

    def row(name: str, record: dict[str, Any], value: Callable[[dict[str, Any]], float],
            note: str = "") -> None:
        ours = value(record)
        theirs = [f"{value(side):.1f} ms ({ours / value(side):.2f})" if side else "" for side in
                  (record["compare"].get(name) for name in SIDES)]
        rows.append(f"| {name} | {ours:.1f} ms{note} | {' | '.join(theirs)} |")

    for case in ("context_128", "context_2048"):
        record = results[case]
        context = record["prompt_tokens"] + record["depth"]
        row(f"TPOT p50, context {context}", record, tpot,
            f", {record['bandwidth_fraction']:.0%} of read bandwidth")
        row(f"TPOT p50 sampled, context {context}", record,
            lambda side: side["sampled"]["tpot_ms"]["p50"])
    for case in ("decode", "context_128", "prefill"):
        row(f"TTFT, {results[case]['prompt_tokens']} prompt tokens", results[case],
            lambda side: side["ttft_ms"])
    short = results["context_128"]
    found, versions = short["correctness"], short["versions"]
    compared = short["compare"]
    errors = ", ".join(f"{compared[name]['correctness']['max_abs_logit_error']:.3f} {label}"
                       for name, label in SIDES.items())
    rows += ["", (
        f"In brackets ours / theirs. {short['workers']} workers on {short['cpu']}, of a measured "
        f"read bandwidth of {short['peak_bandwidth_gb_s']:.0f} GB/s; at context "
        f"{short['prompt_tokens']} {found['tokens_equal']} of {found['tokens_compared']} greedy "
        f"tokens are the likeliest to {found['reference']}, largest logit error "
        f"{found['max_abs_logit_error']:.3f} ({errors}), peak memory "
        f"{short['peak_rss_mb']:.0f} MB; medians of {short['repeats']} interleaved rounds, torch "
        f"{versions['torch']}, transformers {versions['transformers']}, "
        f"{compared['llama-cpp']['version']}, {short['date'][:10]}, commit "
        f"{short['commit'][:7]}. Shared machines are noisy: TPOT p90 was "
        f"{short['tpot_ms']['p90']:.1f} ms, and transformers' "
        f"{compared['transformers']['tpot_ms']['p90']:.1f} ms.")]
    return "\n".join(rows)


def readme() -> str:
    """Four rows that stand for all others, and the correctness of the same runs."""
    cpu, gpu = load("cpu_decode"), load("gpu_decode")
    rows = ["| batch 1, random bf16 weights | Event Tensor | others, same weights, same rounds |",
            "|---|---|---|"]
    short = cpu["context_128"]
    workers = f"{short['workers']} workers on {short['cpu']}"
    for text, name, ours, note in (
            ("Qwen3-0.6B, context 128: time per token", "context_128", tpot, True),
            ("context 2048", "context_2048", tpot, True),
            (f"first token after {short['prompt_tokens']} prompt tokens", "context_128",
             lambda side: float(side["ttft_ms"]), False)):
        record = cpu[name]
        share = f", {record['bandwidth_fraction']:.0%} of read bandwidth" if note else ""
        theirs = ", ".join(f"{ours(record['compare'][side]):.0f} ms {label}"
                           for side, label in SIDES.items())
        rows.append(f"| {text} | {ours(record):.1f} ms{share} | {theirs} |")
    case = next(case for case in gpu["cases"] if case["context"] == 128)
    ours, theirs = (case["speed"][side] for side in ("event_tensor", "cuda_graphs"))
    rows.append(
        f"| {case['shape']} on one {gpu['gpu']}, context 128: time per token | "
        f"{ours['ms_per_step']:.2f} ms, {ours['fraction_of_measured']:.0%} of read bandwidth | "
        f"{theirs['ms_per_step']:.2f} ms PyTorch with CUDA graphs |")
    found, sides = short["correctness"], case["correctness"]["sides"]
    rows += ["", (
        f"The first three rows: {workers}. In the same runs {found['tokens_equal']} of "
        f"{found['tokens_compared']} greedy tokens are the likeliest to {found['reference']}, and "
        f"the largest logit error is {found['max_abs_logit_error']:.3f} on the CPU "
        f"({short['compare']['transformers']['correctness']['max_abs_logit_error']:.3f} "
        f"transformers) and {sides['event_tensor']['max_abs_logit_error']:.3f} on the GPU "
        f"({sides['cuda_graphs']['max_abs_logit_error']:.3f} PyTorch). Commits "
        f"{short['commit'][:7]} and {gpu['commit'][:7]}.")]
    return "\n".join(rows)


def tpot(record: dict[str, Any]) -> float:
    return float(record["tpot_ms"]["p50"])


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
    """From the command to the first token of the demo model, and the phases of a larger one."""
    result, tracing = load("start_up"), load("tracing_cost")
    seconds = result["median_seconds"]
    shape = next(name for name in result["phases"] if name != "demo")
    imported = load("import_time")
    warm = result["phases"][shape]["seconds"]["warm"]
    return (
        f"From the command to the first token of `demo`, imports included: {seconds['warm']:.1f} s "
        f"with a warm cache, {seconds['cold']:.1f} s when everything must be compiled first; "
        f"`--help` takes {seconds['help']:.2f} s, `import event_tensor` "
        f"{imported['median_ms']:.1f} ms. A warm start of the {shape} shape: "
        f"{warm['all but weights']:.1f} s and {warm['weights']:.1f} s for reading weights, of that "
        f"{warm['code']:.2f} s for the kernel; {warm['attributed']:.1%} of it in named phases. "
        f"Tracing costs {tracing['tracing']['overhead']:.1%} of TPOT there.")


def fuzz() -> str:
    """The protocol over random graphs."""
    result = load("fuzz_protocol")
    dispatched = ""
    if (RESULTS / "fuzz_dispatch.json").exists():
        dispatch = load("fuzz_dispatch")
        dispatched = (
            f" {dispatch['dispatch_graphs']:,} with data-dependent edges, each run "
            f"{dispatch['counts']['dispatch launches'] // dispatch['dispatch_graphs']} times by 1 "
            f"to 8 threads: {dispatch['failures']} failures.")
    return (f"{result['graphs']:,} random graphs, {result['counts']['interleavings']:,} "
            f"interleavings and {result['counts']['mutations']:,} mutated tables and schedules: "
            f"{result['failures']} failures.{dispatched}")


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
    names = list(result["cases"][0]["ms"])  # as many as there were when it was measured
    rows = [f"| ms per step, same tiles | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for case in result["cases"]:
        values = " | ".join(f"{case['ms'][name]:.2f}" for name in names)
        rows.append(f"| {case['case']} | {values} |")
    costs, sampling = result["costs_us"], load("sampling_cost")
    behind = max(result["cases"], key=behind_best)
    noise = max((abs(ratio(case, "auto", same) - 1) for case in result["cases"]
                 for same in case["auto_equals"]), default=0.0)
    dense, *layers = result["cases"]
    predicted = [ms / case["ms"][name] for case in layers for name, ms in
                 case["predicted_ms"][str(result["workers"])].items()]
    low, high = min(predicted), max(predicted)
    rows += ["", (
        f"{result['workers']} workers on {result['cpu']}, medians of {result['rounds']} "
        f"interleaved rounds; the layer is one of Qwen3-30B-A3B, {result['experts']} experts. By "
        f"the median of each round's ratio, dynamic takes {ratio(dense, 'dynamic', 'static'):.2f} "
        f"of static's time on dense decode, and auto is at most {behind_best(behind):.1%} behind "
        f"the best of the other {NUMBERS[len(names) - 1]} ({behind['case']}); where auto is row "
        f"for row one of them, "
        f"the two still differ by up to {noise:.1%}. The simulator predicted {low:.2f} to "
        f"{high:.2f} of what an MoE layer took. A dependency costs "
        f"{costs['dependency_us']:.3f} us, a pop {costs['pop_us']:.3f} us, a push "
        f"{costs['push_us']:.3f} us. Sampling costs {sampling['cost']:.1%} of TPOT over greedy.")]
    return "\n".join(rows)


def busy_cores() -> str:
    """Beside programs that want the cores."""
    record = load("busy_cores")
    loops = ["0", "1", "2", "4"]
    rows = []
    for model, found in record["models"].items():
        for side, metrics in found["sides"].items():
            of_loops = metrics["tpot_ms"]
            cells = [f"{of_loops[n]['median']:.1f} ({of_loops[n]['of_idle']:.2f}; worst round "
                     f"{of_loops[n]['worst']:.1f})" for n in loops]
            rows.append([f"{model}, {side}", *cells])
    together = [f"{of['throughput_ratio']:.2f} ({model})" for model, found in
                record["models"].items() for of in found["several"].values()]
    lines = table(["median time per token, ms (of idle)", "idle cores", "1 busy loop", "2", "4"],
                  rows)
    lines += ["", (
        f"Two cores, {record['rounds']} rounds, all sides in turns; before and after are commits "
        f"{', '.join(commit[:7] for commit in record['commits'].values())}. Four decoders in four "
        f"processes at once have this share of the throughput of one after another: "
        f"{', '.join(together)}.")]
    return "\n".join(lines)


def few_rows() -> str:
    """Steps of several rows in terms of a step of one."""
    record = load("few_rows")
    sections = {name: record[name] for name in ("avx2", "all") if name in record}
    numbers = list(next(iter(sections.values()))["ratios"])
    rows = []
    for section in sections.values():
        cells = [f"{section['ratios'][n]:.2f}" for n in numbers]
        label = "AVX-512" if "avx512f" in section["features"] else "AVX2"
        rows.append([label, f"{section['step_ms']['1']:.1f} ms", *cells])
    *others, last = numbers
    return "\n".join(table(["decode step, Qwen3-0.6B shape in bf16", "1 row", *others,
                            f"{last} rows"], rows))


def cost_model() -> str:
    """Simulated over measured steps."""
    cases = load("cost_model")["cases"]
    models = list(dict.fromkeys(case["model"] for case in cases))
    rows = []
    for machine in dict.fromkeys(case["machine"] for case in cases):
        for schedule in dict.fromkeys(case["schedule"] for case in cases):
            cells = [f"{case['ratio']:.2f}" for case in cases
                     if (case["machine"], case["schedule"]) == (machine, schedule)]
            rows.append([f"{machine}, {schedule}", *cells])
    return "\n".join(table(["step, simulated over measured", *models], rows))


def ratio(case: dict[str, Any], one: str, other: str) -> float:
    """Time of one schedule over another's, the median over rounds."""
    return median(a / b for a, b in zip(case["rounds_ms"][one], case["rounds_ms"][other],
                                        strict=True))


def behind_best(case: dict[str, Any]) -> float:
    """How much longer auto takes than the best of the others; none where it is the best."""
    if case["best"] in case["auto_equals"]:
        return 0.0
    return max(ratio(case, "auto", case["best"]) - 1, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readme", action="store_true", help="the four rows of the README")
    if parser.parse_args().readme:
        print(readme())
        return
    print(cpu_decode(), few_rows(), busy_cores(), gpu_decode(), schedules(), cost_model(),
          start_up(), scheduling(), fuzz(), sep="\n\n")


if __name__ == "__main__":
    main()
