"""Random graphs through the whole protocol, and damage to what it proved.

    python benchmarks/protocol/fuzz.py --graphs 10000 --processes 2

Every graph is derived once and, for each of its bindings, proved, scheduled by every policy,
pruned, proved again and simulated under seeded interleavings over an abstract memory. Then one
copy of the table and one of a schedule is damaged in each known way; a proof must reject it exactly
where it does harm. What program order demands is worked out by tests/support/program_order.py,
which shares no code with the proofs. Prints a summary, writes its result file, and fails when
anything was not as it must be.

N random graphs with data-dependent edges (`--dispatch N`) are also run by real threads, in rows and
through the ready queue, and judged by the times that their tasks note; by themselves with

    python benchmarks/protocol/fuzz.py --graphs 0 --output benchmarks/results/fuzz_dispatch.json
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import platform
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import mutations as m  # noqa: E402
from dispatch_graphs import dispatch_graph, run_and_check  # noqa: E402
from program_order import Program, ordered_by_events  # noqa: E402
from random_graphs import queue_some_calls, random_graph  # noqa: E402

from event_tensor.derive import derive_events  # noqa: E402
from event_tensor.task_table import TaskTable  # noqa: E402
from event_tensor.verify import verify  # noqa: E402
from persistent_runtime.cpu.cores import available_cores  # noqa: E402
from persistent_runtime.megakernel import Megakernel  # noqa: E402
from scheduling.merge import merge_events  # noqa: E402
from scheduling.policies import POLICIES  # noqa: E402
from scheduling.prune import prune_waits  # noqa: E402
from scheduling.schedule import Schedule  # noqa: E402
from scheduling.target import generic_cpu  # noqa: E402
from scheduling.verify_schedule import verify_schedule  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "fuzz_protocol.json"
EVENT_MUTATIONS = (*m.WEAKER_OR_OTHER_EVENTS, *m.WRONG_COUNTS)
INTERLEAVINGS = 2  # of each table and of each schedule
DISPATCH_POLICIES = ("static", "hybrid", "dynamic", "dynamic_early", "hybrid_early", "auto")
WORKERS = (1, 2, 3, 5, 8)
STEPS = 12  # of each launch


class Tally:
    """Counts of outcomes, seconds by phase, and the first failures in words."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()
        self.failures: list[str] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - begin

    def fail(self, text: str) -> None:
        self.counts["failures"] += 1
        if len(self.failures) < 20:
            self.failures.append(text)

    def add(self, other: Tally) -> None:
        self.counts += other.counts
        self.seconds += other.seconds
        self.failures = (self.failures + other.failures)[:20]


def fuzz(seed: int) -> Tally:
    tally = Tally()
    try:
        _fuzz_graph(seed, tally)
    except Exception as error:  # a crash of any kind is a finding, and must name its seed
        tally.fail(f"seed {seed}: {type(error).__name__}: {error}")
    tally.counts["graphs"] += 1
    return tally


def _fuzz_graph(seed: int, tally: Tally) -> None:
    rng = random.Random(seed)
    example = random_graph(seed)
    with tally.phase("derive"):
        graph = derive_events(example.graph)
    for bindings in example.bindings:
        with tally.phase("instantiate and verify"):
            table = verify(graph, bindings)
        tally.counts["tables"] += 1
        tally.counts["tasks"] += table.num_tasks
        with tally.phase("independent check"):
            program = Program(table)
            if len(program.unordered(ordered_by_events(table))):
                tally.fail(f"seed {seed}: verify accepts a race")
        with tally.phase("simulate"):
            for interleaving in range(INTERLEAVINGS):
                program.replay(seed + interleaving)
                tally.counts["interleavings"] += 1
    for policy in POLICIES.values():
        _fuzz_schedule(seed, table, program, policy, rng, tally)
    with tally.phase("mutations"):
        for mutate in EVENT_MUTATIONS:
            damaged = mutate(table, rng)
            if damaged is not None:
                silent = bool((damaged.event_count[damaged.wait_event] == 0).any())
                _judge(f"table {mutate.__name__}", seed, m.table_is_harmless(damaged),
                       m.is_accepted(damaged), tally, may_be_stricter=silent)


def _fuzz_schedule(seed: int, table: TaskTable, program: Program, policy: Callable[..., Any],
                   rng: random.Random, tally: Tally) -> None:
    with tally.phase("place, prune and verify_schedule"):
        schedule: Schedule = verify_schedule(
            merge_events(prune_waits(_place(policy, table, rng))))
    tally.counts["schedules"] += 1
    tally.counts["waits before pruning"] += len(schedule.source.wait_event)
    tally.counts["waits after pruning"] += len(schedule.table.wait_event)
    with tally.phase("simulate"):
        for interleaving in range(INTERLEAVINGS):
            program.replay(seed + interleaving, schedule.orders, table=schedule.table,
                           queued=schedule.queued)
            tally.counts["interleavings"] += 1
    with tally.phase("mutations"):
        for mutate in (*m.ORDERS, *m.PLACEMENTS):
            damaged = mutate(schedule, rng)
            if damaged is not None:
                harmless = mutate in m.ORDERS and m.schedule_is_harmless(damaged)
                _judge(f"schedule {mutate.__name__}", seed, harmless,
                       m.is_accepted_schedule(damaged), tally)
        for mutate in EVENT_MUTATIONS:
            changed = mutate(schedule.table, rng)
            if changed is not None:
                damaged = m.replace(schedule, table=changed)
                _judge(f"schedule {mutate.__name__}", seed, m.schedule_is_harmless(damaged),
                       m.is_accepted_schedule(damaged), tally)


def _place(policy: Callable[..., Any], table: TaskTable, rng: random.Random) -> Schedule:
    """The policy's schedule; a hybrid one, which finds no data-dependent call here, queues any."""
    schedule: Schedule = policy(table, generic_cpu(rng.choice((1, 2, 3, 5))))
    return queue_some_calls(schedule, rng) if schedule.policy.startswith("hybrid") else schedule


def fuzz_dispatch(seed: int) -> Tally:
    """One random data-dependent graph in every schedule, by real threads."""
    tally = Tally()
    tally.counts["dispatch graphs"] += 1
    made = dispatch_graph(seed)
    for policy in DISPATCH_POLICIES:
        with tally.phase("dispatch by threads"):
            try:
                kernel = Megakernel(made.graph, policy=policy, workers=WORKERS[seed % len(WORKERS)],
                                    samples=made.samples)
                wrong = run_and_check(made, kernel, STEPS)
            except Exception as error:  # as in fuzz
                wrong = f"{type(error).__name__}: {error}"
        tally.counts["dispatch launches"] += 1
        if wrong:
            tally.fail(f"dispatch seed {seed}, {policy}: {wrong}")
    return tally


def _judge(kind: str, seed: int, harmless: bool, accepted: bool, tally: Tally,
           may_be_stricter: bool = False) -> None:
    verdict = ("harmless, accepted" if accepted else "harmless, rejected") if harmless else (
        "harmful, accepted" if accepted else "harmful, rejected")
    tally.counts["mutations"] += 1
    tally.counts[f"{kind}: {verdict}"] += 1
    if accepted != harmless and not (harmless and may_be_stricter):
        tally.fail(f"seed {seed}: {kind} is {verdict}")


def run(graphs: int, dispatch: int, first_seed: int, processes: int) -> tuple[Tally, float]:
    total, begin = Tally(), time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        results = itertools.chain.from_iterable(
            pool.imap_unordered(one, range(first_seed, first_seed + count), chunksize=20)
            for one, count in ((fuzz, graphs), (fuzz_dispatch, dispatch)))
        for done, tally in enumerate(results, 1):
            total.add(tally)
            if done % 1000 == 0:
                print(f"{done} graphs, {total.counts['failures']} failures, "
                      f"{time.perf_counter() - begin:.0f} s", flush=True)
    return total, time.perf_counter() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=10_000)
    parser.add_argument("--dispatch", type=int, default=10_000)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=available_cores())
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    total, seconds = run(options.graphs, options.dispatch, options.first_seed,
                         options.processes)
    result = {
        "graphs": options.graphs, "dispatch_graphs": options.dispatch,
        "first_seed": options.first_seed, "processes": options.processes,
        "seconds": round(seconds, 1),
        "failures": total.counts["failures"], "failure_examples": total.failures,
        "counts": dict(sorted(total.counts.items())),
        "seconds_by_phase": {k: round(v, 1) for k, v in sorted(total.seconds.items())},
        "python": platform.python_version(), "machine": platform.machine()}
    for name, count in result["counts"].items():
        print(f"{count:10d}  {name}")
    for failure in total.failures:
        print(failure)
    print(f"{options.graphs} graphs and {options.dispatch} with data-dependent edges in "
          f"{seconds:.0f} s on {options.processes} processes: "
          f"{result['failures']} failures")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
