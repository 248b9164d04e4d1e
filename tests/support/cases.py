"""Which cases of a claim every run takes. The others have the mark `exhaustive`: pytest runs them
with `--exhaustive`, and so does benchmarks/protocol/suite_time.py.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

OPTION = "--exhaustive"
is_exhaustive = False  # this run; set before any test is imported
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # a case takes a thousand times as long


def add_option(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, action="store_true",
                     help="run every case of every claim, not only a sample of some")


def configure(config: pytest.Config) -> None:
    global is_exhaustive
    is_exhaustive = bool(config.getoption(OPTION))


def usual_or(usual: Any, exhaustive: Any) -> Any:
    """What this run takes of something that a test draws or counts for itself."""
    return exhaustive if is_exhaustive else usual


def leave_out_exhaustive(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the cases that only an exhaustive run takes."""
    if is_exhaustive:
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


def sampled(cases: Iterable[Any], kept: Iterable[Any], only_interpreted: bool = False
            ) -> list[Any]:
    """Parameters of a test: all cases, of which a usual run takes those in `kept`. A case that is a
    tuple gives several parameters. only_interpreted: elsewhere a usual run takes all.

    >>> [len(case.marks) for case in sampled(range(4), (0, 3))]
    [0, 1, 1, 0]
    """
    cases, kept = list(cases), list(kept)
    missing = [case for case in kept if case not in cases]
    if missing:
        raise ValueError(f"not among the cases: {missing}")
    takes_all = only_interpreted and not INTERPRETED
    return [_parameter(case, takes_all or case in kept) for case in cases]


def pairs(*axes: Sequence[Any], only_interpreted: bool = False) -> list[Any]:
    """Parameters of a test: every combination, of which a usual run takes so many that each pair of
    values of two axes is there. only_interpreted: elsewhere a usual run takes all.

    >>> sum(not case.marks for case in pairs("abc", "xyz", "01"))
    9
    """
    combinations = list(itertools.product(*axes))
    return sampled(combinations, covering_of(combinations), only_interpreted)


def turns(*axes: Sequence[Any], only_interpreted: bool = False) -> list[Any]:
    """Parameters of a test: every combination, of which a usual run takes so many that each value
    is there.

    >>> [case.values for case in turns("ab", "xyz") if not case.marks]
    [('a', 'x'), ('a', 'z'), ('b', 'y')]
    """
    kept = [tuple(axis[k % len(axis)] for axis in axes) for k in range(max(map(len, axes)))]
    return sampled(itertools.product(*axes), kept, only_interpreted)


def covering_of(combinations: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Takes again and again the first combination with the most pairs that were not there yet."""
    def pairs_of(case: tuple[Any, ...]) -> set[Any]:
        return {(i, repr(case[i]), j, repr(case[j]))
                for i, j in itertools.combinations(range(len(case)), 2)}

    missing = set().union(*map(pairs_of, combinations))
    taken = []
    while missing:
        best = max(combinations, key=lambda case: len(pairs_of(case) & missing))
        taken.append(best)
        missing -= pairs_of(best)
    return taken


def _parameter(case: Any, is_kept: bool) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=() if is_kept else pytest.mark.exhaustive)
