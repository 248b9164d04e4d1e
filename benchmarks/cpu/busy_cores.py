"""Time per token and to the first one while other programs want the cores.

    python benchmarks/cpu/busy_cores.py before=/path/to/a/checkout after=.

Each argument names a side and its checkout; transformers and llama.cpp (pip install
'event-tensor[bench]') run on the same weights. Every side is a process of its own. In each round
all of them answer in turns, in random order, beside none, one, two and four busy loops for each
two cores. Then four decoders of the last side run at once. Writes
benchmarks/results/busy_cores.json: the median and the worst of the rounds, and what they are of
the same side's time on idle cores.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.compare_commits import Side, checkout_of  # noqa: E402
from benchmarks.make_model import SHAPES, model_config, write_model  # noqa: E402
from frontend.report.bench.baselines.engine import Work  # noqa: E402
from frontend.report.bench.sides import start  # noqa: E402
from frontend.report.machine import provenance  # noqa: E402
from persistent_runtime.cpu.cores import available_cores  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "busy_cores.json"
BASELINES = ("transformers", "llama-cpp")
LOOPS = (0, 1, 2, 4)
LIMITS = {1: 1.8, 2: 2.3, 4: 3.5}  # for the median, in terms of idle cores
WORST = 2.0  # the worst round, in terms of that limit
PROMPT_TOKENS, NEW_TOKENS = 128, 32
AT_ONCE = 4
SETTLE_S = 0.3  # threads of libraries spin for a while after their work
Answer = Callable[[list[int]], dict[str, float]]


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        time.sleep(SETTLE_S)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def ours(side: Side) -> Answer:
    def answer(prompt: list[int]) -> dict[str, float]:
        found = side.ask({"prompt": prompt, "new_tokens": NEW_TOKENS, "repeats": 1,
                          "sampling": {"temperature": 0.0}})
        return {name: found[name] for name in ("tpot_ms", "ttft_ms")}

    return answer


def baseline(process: Any) -> Answer:
    def answer(prompt: list[int]) -> dict[str, float]:
        found = process.run("greedy")
        times = [found["start_ns"], *found["token_times_ns"]]
        gaps = [(b - a) / 1e6 for a, b in zip(times, times[1:], strict=False)]
        return {"ttft_ms": gaps[0], "tpot_ms": statistics.median(gaps[1:])}

    return answer


def measure(answers: dict[str, Answer], prompt: list[int], rounds: int, cores: int
            ) -> dict[str, Any]:
    """side → loops → metric → a value per round"""
    rng = random.Random(0)
    found: dict[str, Any] = {name: {loops: {"tpot_ms": [], "ttft_ms": []} for loops in LOOPS}
                             for name in answers}
    for number in range(-1, rounds):  # the first one warms up
        for loops in rng.sample(LOOPS, len(LOOPS)) if number >= 0 else (0,):
            with busy_loops(loops * cores // 2):
                for name in rng.sample(list(answers), len(answers)):
                    answer = answers[name](prompt)
                    if number >= 0:
                        for metric, value in answer.items():
                            found[name][loops][metric].append(round(value, 3))
                    time.sleep(SETTLE_S)
        print(f"round {number}: " + "; ".join(
            f"{name} " + " ".join(f"{found[name][loops]['tpot_ms'][-1]:.1f}" for loops in LOOPS)
            for name in answers if number >= 0), flush=True)
    return {name: {metric: summary({loops: of_side[loops][metric] for loops in LOOPS})
                   for metric in ("tpot_ms", "ttft_ms")} for name, of_side in found.items()}


def summary(rounds: dict[int, list[float]]) -> dict[str, Any]:
    """By number of loops."""
    idle = statistics.median(rounds[0])
    result: dict[str, Any] = {}
    for loops, values in rounds.items():
        middle, worst = statistics.median(values), max(values)
        result[str(loops)] = {"median": middle, "worst": worst,
                              "of_idle": round(middle / idle, 3), "rounds": values}
        if limit := LIMITS.get(loops):
            result[str(loops)] |= {"limit": limit, "met": middle <= limit * idle
                                   and worst <= limit * WORST * idle}
    return result


def at_once(checkout: Path, model: str, folder: Path, prompt: list[int]) -> dict[str, Any]:
    """Several decoders' throughput together, in terms of one after another."""
    request = {"prompt": prompt, "new_tokens": 4 * NEW_TOKENS, "repeats": 1,
               "sampling": {"temperature": 0.0}}
    with ExitStack() as stack:
        sides = [Side(checkout, folder / "cache", model) for _ in range(AT_ONCE)]
        for side in sides:
            stack.callback(side.end)
            side.ask(request)
        begin = time.perf_counter()
        for side in sides:
            side.ask(request)
        one_by_one = time.perf_counter() - begin
        begin = time.perf_counter()
        for side in sides:
            side.send(request)
        took = []
        for side in sides:
            side.receive()
            took.append(round(time.perf_counter() - begin, 3))
    return {"decoders": AT_ONCE, "one_after_another_s": round(one_by_one, 3), "at_once_s": took,
            "throughput_ratio": round(one_by_one / max(took), 3), "at_least": 0.8}


def compare(model: str, vocab: int, checkouts: dict[str, Path], options: argparse.Namespace
            ) -> dict[str, Any]:
    cores = available_cores()
    rng = random.Random(1)
    prompt = [rng.randrange(vocab) for _ in range(PROMPT_TOKENS)]
    work = Work("", model, "bfloat16", cores, "cpu", [], prompt, NEW_TOKENS, False, 0)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        answers: dict[str, Answer] = {}
        for side, checkout in checkouts.items():
            started = Side(checkout, folder / side, model)
            stack.callback(started.end)
            answers[side] = ours(started)
        for engine in options.baselines:
            process = start(replace(work, engine=engine), folder)
            stack.callback(process.end)
            answers[engine] = baseline(process)
        found = measure(answers, prompt, options.rounds, cores)
    last = list(checkouts)[-1]
    with tempfile.TemporaryDirectory() as name:
        return {"sides": found, "several": {last: at_once(checkouts[last], model, Path(name),
                                                          prompt)}}


def to_markdown(models: dict[str, Any]) -> str:
    rows = ["| model, side | idle | " + " | ".join(f"{n} loops" for n in LOOPS[1:]) + " |",
            "|---|---|" + "---|" * len(LOOPS[1:])]
    for model, found in models.items():
        for side, metrics in found["sides"].items():
            for metric, by_loops in metrics.items():
                cells = [f"{of['median']:.1f} (worst {of['worst']:.1f}; {of['of_idle']:.2f}×)"
                         for of in by_loops.values()]
                rows.append(f"| {model}, {side}, {metric} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sides", nargs="+", help="NAME=COMMIT or NAME=CHECKOUT")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME=DIRECTORY")
    parser.add_argument("--shapes", nargs="*", default=["qwen3-0.6b"], choices=SHAPES)
    parser.add_argument("--baselines", nargs="*", default=list(BASELINES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        checkouts, commits = {}, {}
        for argument in options.sides:
            side, _, place = argument.partition("=")
            checkouts[side], commits[side] = stack.enter_context(checkout_of(place))
        models = dict(argument.partition("=")[::2] for argument in options.models)
        models |= {shape: str(write_model(model_config(shape), Path(name, shape)))
                   for shape in options.shapes}
        found = {}
        for model, directory in models.items():
            vocab = json.loads(Path(directory, "config.json").read_text())["vocab_size"]
            found[model] = compare(directory, vocab, checkouts, options)
    result = {"commits": commits, "rounds": options.rounds, "prompt_tokens": PROMPT_TOKENS,
              "new_tokens": NEW_TOKENS, "models": found, **provenance()}
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(to_markdown(found))


if __name__ == "__main__":
    main()
