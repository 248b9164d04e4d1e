"""What `bench` prints: llama-bench's rows for every side, and the machine's own limits below."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from frontend.report.bench.baselines.engine import SAMPLED
from frontend.report.bench.sides import OURS
from frontend.report.console import print_table

QUIET_SHARE = 0.05  # more of the processor than this in others' hands, and figures are in doubt
CACHED_BYTES = 64 << 20  # a step that reads less may find it in the last-level cache
COLUMNS = ("engine", "test", "tok/s", "p50 ms", "p90", "p99", "GB/s", "of peak", "peak MB",
           "tokens right", "logit error", "theirs / ours")


def table_rows(record: dict[str, Any]) -> list[list[str]]:
    """Per side: pp (the prompt), tg (the decode steps), and tg with sampling where it was
    measured; COLUMNS. Milliseconds are TTFT for pp, TPOT for tg."""
    depth = f" @ d{record['depth']}" if record["depth"] else ""
    pp, tg = f"pp{record['prompt_tokens']}{depth}", f"tg{record['new_tokens']}{depth}"
    rows = []
    for name, side in {OURS: record, **record["compare"]}.items():
        memory, right = f"{side['peak_rss_mb']:.0f}", list(correctness(side))
        rows.append([
            name, pp, plus_minus(side["pp_tokens_per_second"]), f"{side['ttft_ms']:.1f}", "", "",
            "", "", memory, *right, f"{side.get('ttft_ratio', 1):.2f}"])
        rows.append([name, tg, *decode_cells(side), memory, *right, f"{side.get('ratio', 1):.2f}"])
        if SAMPLED in side:
            drawn = side[SAMPLED]
            rows.append([name, f"{tg} sampled", *decode_cells(drawn), memory,
                         *correctness(drawn), f"{drawn.get('ratio', 1):.2f}"])
    return rows


def plus_minus(rate: dict[str, float]) -> str:
    return f"{rate['mean']:.1f} ± {rate['std']:.1f}"


def decode_cells(side: dict[str, Any]) -> list[str]:
    return [plus_minus(side["tg_tokens_per_second"]),
            *(f"{side['tpot_ms'][p]:.2f}" for p in ("p50", "p90", "p99")),
            f"{side['bandwidth_gb_s']:.1f}", f"{side['bandwidth_fraction']:.0%}"]


def correctness(side: dict[str, Any]) -> Iterator[str]:
    found = side["correctness"]
    agreed = found.get("tokens_equal", found.get("tokens_possible"))
    yield f"{agreed}/{found['tokens_compared']}"
    yield f"{found['max_abs_logit_error']:g}"


def title(record: dict[str, Any]) -> str:
    return (f"{record['model']} {record['dtype']}, batch 1, {record['backend']} backend, "
            f"{record['workers']} workers, {record['schedule']} schedule, {record['cpu']}")


def notes(record: dict[str, Any]) -> list[str]:
    """What the table's figures are measured against, and when not to believe them."""
    cached = " (what fits a cache is read faster)" if record["step_bytes"] < CACHED_BYTES else ""
    lines = [
        f"peak: {record['peak_bandwidth_gb_s']:.1f} GB/s measured read bandwidth{cached}; "
        f"{record['repeats']} interleaved rounds",
        f"tokens right: the likeliest to {record['correctness']['reference']}, or, sampled, among "
        f"those it could have drawn; logit error: the largest against the same"]
    lines += [f"{name}: {side['version']}; loaded in {side['load_s']:.1f} s and warmed up in "
              f"{side['warm_up_s']:.1f} s, which is not in the table"
              for name, side in record["compare"].items()]
    if (record["other_programs_cpu_share"] or 0) > QUIET_SHARE:
        lines.append(f"other programs used {record['other_programs_cpu_share']:.0%} of the "
                     f"processor meanwhile: do not quote these figures, the ratios least of all")
    return lines


def show(record: dict[str, Any]) -> None:
    print_table(title(record), COLUMNS, table_rows(record))
    for line in notes(record):
        print(line)


def to_markdown(record: dict[str, Any]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    lines += ["| " + " | ".join(row) + " |" for row in table_rows(record)]
    return "\n".join([title(record), "", *lines, "", *(f"- {line}" for line in notes(record))])
