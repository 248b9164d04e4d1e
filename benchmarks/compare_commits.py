"""Two commits side by side: time per token, time to the first token, warm and cold start.

    python benchmarks/compare_commits.py HEAD~20 HEAD
    python benchmarks/compare_commits.py /path/to/a/checkout . --rounds 9

OLD and NEW are commits or directories of checkouts. Each side is a process of its own with its own
cache, on the same weights. Both answer the same prompts with the same seeds in turns, in random
order within every round; starts are processes too, cold ones with an empty cache. Writes
medians, the quartiles of the rounds' ratios new / old, and whether all tokens are the same, to
benchmarks/results/compare_commits.json; ends with 1 where tokens differ or a limit is passed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.make_model import SHAPES, model_config, write_model  # noqa: E402
from frontend.report.machine import Contention, provenance  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "compare_commits.json"
CHILD = ROOT / "benchmarks" / "compare_child.py"
SIDES = ("old", "new")
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8, "top_k": 50, "top_p": 0.95}}
MAX_CONTEXT = 512
# at most this for the median of the ratios new / old
LIMITS = {"tpot_greedy_ms": 1.02, "tpot_sampled_ms": 1.02, "ttft_ms": 1.02, "warm_start_s": 1.05,
          "cold_start_s": 1.02}
Rounds = dict[str, dict[str, list[float]]]  # metric → side → a value for each round


@dataclass(frozen=True)
class Case:
    name: str
    model: str
    prompt_tokens: int
    new_tokens: int
    repeats: int  # of each request within a round: short ones are repeated
    vocab_size: int


class Side:
    """A process that has compiled the model. start_s: from its start to its first token."""

    def __init__(self, checkout: Path, cache: Path, model: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "EVENT_TENSOR_CACHE": str(cache)}
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, str(CHILD), model, str(MAX_CONTEXT)], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self.ready = self.receive()
            self.start_s = time.perf_counter() - begin
            if Path(self.ready["checkout"]).resolve() != checkout.resolve():
                raise RuntimeError(f"{self.ready['checkout']} was imported, not {checkout}")
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.send(request)
        return self.receive()

    def send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a side ended without an answer; its error stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def checkout_of(name: str) -> Iterator[tuple[Path, str]]:
    """(directory, commit) of a checkout, or of a commit, whose files go to a temporary folder."""
    if Path(name, "frontend").is_dir():
        changes = git("status", "--porcelain", "--untracked-files=no", folder=name)
        yield Path(name).resolve(), git("rev-parse", "HEAD", folder=name) + (
            "-dirty" if changes else "")
        return
    commit = git("rev-parse", "--verify", f"{name}^{{commit}}")
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "files.tar")
        git("archive", f"--output={archive}", commit)
        with tarfile.open(archive) as files:
            files.extractall(Path(folder, "checkout"), filter="data")
        yield Path(folder, "checkout"), commit


def git(*arguments: str, folder: str | Path = ROOT) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], check=True, text=True,
                          stdout=subprocess.PIPE)
    return done.stdout.strip()


def compare_speed(case: Case, sides: dict[str, Side], rounds: int, rng: random.Random
                  ) -> tuple[Rounds, dict[str, int]]:
    """Both sides in turns on the same prompts, a new one for each round; and how many tokens of
    all requests were the same on both sides."""
    found: Rounds = {name: {side: [] for side in SIDES}
                     for name in ("tpot_greedy_ms", "tpot_sampled_ms", "ttft_ms")}
    tokens = {"compared": 0, "equal": 0}
    for number in range(-1, rounds):  # the first one warms up
        prompt = [rng.randrange(case.vocab_size) for _ in range(case.prompt_tokens)]
        ttft: dict[str, list[float]] = {side: [] for side in SIDES}
        for mode, sampling in MODES.items():
            request = {"prompt": prompt, "new_tokens": case.new_tokens, "repeats": case.repeats,
                       "sampling": sampling | {"seed": number + 1}}
            answers = {side: sides[side].ask(request) for side in rng.sample(SIDES, len(SIDES))}
            old, new = (answers[side]["output_ids"] for side in SIDES)
            tokens["compared"] += len(old)
            tokens["equal"] += sum(a == b for a, b in zip(old, new, strict=True))
            for side in SIDES:
                ttft[side].append(answers[side]["ttft_ms"])
                if number >= 0:
                    found[f"tpot_{mode}_ms"][side].append(answers[side]["tpot_ms"])
        if number >= 0:
            for side in SIDES:
                found["ttft_ms"][side].append(statistics.median(ttft[side]))
    return found, tokens


def compare_starts(model: str, checkouts: dict[str, Path], caches: dict[str, Path], *, warm: int,
                   cold: int, rng: random.Random) -> Rounds:
    """Starts up to the first token, imports included, in turns; `caches` are warm."""

    def start(side: str, cache: Path) -> float:
        started = Side(checkouts[side], cache, model)
        started.end()
        return started.start_s

    found: Rounds = {name: {side: [] for side in SIDES}
                     for name in ("warm_start_s", "cold_start_s")}
    for _ in range(warm):
        for side in rng.sample(SIDES, len(SIDES)):
            found["warm_start_s"][side].append(start(side, caches[side]))
    for _ in range(cold):
        for side in rng.sample(SIDES, len(SIDES)):
            with tempfile.TemporaryDirectory() as cache:
                found["cold_start_s"][side].append(start(side, Path(cache)))
    return found


def summary(rounds: Rounds) -> dict[str, Any]:
    """By metric: medians, and the median and quartiles of the rounds' ratios new / old."""
    result = {}
    for name, sides in rounds.items():
        ratios = [new / old for old, new in zip(sides["old"], sides["new"], strict=True)]
        if not ratios:
            continue
        low, middle, high = (statistics.quantiles(ratios, method="inclusive") if len(ratios) > 1
                             else ratios * 3)
        result[name] = {
            **{side: round(statistics.median(values), 4) for side, values in sides.items()},
            "ratio": round(middle, 4), "quartiles": [round(low, 4), round(high, 4)],
            "limit": LIMITS[name], "met": middle <= LIMITS[name],
            "rounds": {side: [round(value, 4) for value in values]
                       for side, values in sides.items()}}
    return result


def compare(case: Case, checkouts: dict[str, Path], options: argparse.Namespace) -> dict[str, Any]:
    """All of one model."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        caches = {side: Path(folder, side) for side in SIDES}
        sides: dict[str, Side] = {}
        try:
            for side in SIDES:
                sides[side] = Side(checkouts[side], caches[side], case.model)
            workers = {side: sides[side].ready["workers"] for side in SIDES}
            contention = Contention([sides[side].pid for side in SIDES])
            rounds, tokens = compare_speed(case, sides, options.rounds, rng)
            others = contention.share()
        finally:
            for started in sides.values():
                started.end()
        rounds |= compare_starts(case.model, checkouts, caches, warm=options.rounds,
                                 cold=options.cold_rounds, rng=rng)
    return {"prompt_tokens": case.prompt_tokens, "new_tokens": case.new_tokens,
            "repeats": case.repeats, "workers": workers, "busy_with_others": others,
            "tokens": tokens, **summary(rounds)}


def to_markdown(cases: dict[str, dict[str, Any]]) -> str:
    rows = ["| | old | new | new / old | quartiles |", "|---|---|---|---|---|"]
    for name, case in cases.items():
        for metric in (metric for metric in LIMITS if metric in case):
            found = case[metric]
            low, high = found["quartiles"]
            rows.append(f"| {name}, {metric} | {found['old']:.3f} | {found['new']:.3f} | "
                        f"{found['ratio']:.3f} | {low:.3f} to {high:.3f} |")
        rows.append(f"| {name}, same tokens | {case['tokens']['compared']} | "
                    f"{case['tokens']['equal']} | | |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", help="a commit, or the directory of a checkout")
    parser.add_argument("new", help="likewise")
    parser.add_argument("--shape", default="qwen3-0.6b", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cold-rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    with (checkout_of(options.old) as (old, old_commit),
          checkout_of(options.new) as (new, new_commit), tempfile.TemporaryDirectory() as folder):
        config = model_config(options.shape)
        directory = write_model(config, Path(folder, options.shape))
        cases = [Case("demo", "demo", 64, 128, 8, 4096),
                 Case(options.shape, str(directory), 96, 48, 1, config.vocab_size)]
        found = {case.name: compare(case, {"old": old, "new": new}, options) for case in cases}
    result = {"old": old_commit, "new": new_commit, "rounds": options.rounds,
              "cold_rounds": options.cold_rounds, "modes": MODES, "cases": found, **provenance()}
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(to_markdown(found))
    same = all(case["tokens"]["equal"] == case["tokens"]["compared"] for case in found.values())
    met = all(case[metric]["met"] for case in found.values() for metric in LIMITS if metric in case)
    return int(not (same and met))


if __name__ == "__main__":
    raise SystemExit(main())
