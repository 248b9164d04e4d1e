"""Expressions against Python's own integers: evaluation, printing, simplification, bounds."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from event_tensor.errors import GraphError
from event_tensor.symbols import (
    Constant,
    Expr,
    Symbol,
    as_expr,
    ceil_div,
    lower_bound,
    maximum,
    minimum,
)

NAMES = ("a", "b", "n")
AT_LEAST = {"a": 0, "b": 1, "n": 2}
PYTHON = {
    "+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y,
    "//": lambda x, y: x // y, "%": lambda x, y: x % y, "min": min, "max": max,
    "ceil_div": lambda x, y: x // y + (x % y != 0)}
BUILD = {"+": lambda x, y: x + y, "-": lambda x, y: x - y, "*": lambda x, y: x * y,
         "//": lambda x, y: x // y, "%": lambda x, y: x % y, "min": minimum, "max": maximum,
         "ceil_div": ceil_div}
INT64 = 2**62

# a tree is a name, an int, or (operator, tree, tree)
leaves = st.one_of(st.sampled_from(NAMES), st.integers(-6, 12))
trees = st.recursive(
    leaves, lambda below: st.tuples(st.sampled_from(sorted(PYTHON)), below, below), max_leaves=10)
values = st.integers(-40, 40)
environments = st.fixed_dictionaries({name: values for name in NAMES})
sizes = st.fixed_dictionaries({name: st.integers(low, 60) for name, low in AT_LEAST.items()})


def reference(tree, environment):
    """The tree's value in Python; examples that divide by zero or leave int64 are passed over."""
    if isinstance(tree, tuple):
        op, left, right = tree
        x, y = reference(left, environment), reference(right, environment)
        assume(y != 0 or op not in ("//", "%", "ceil_div"))
        value = PYTHON[op](x, y)
    else:
        value = environment[tree] if isinstance(tree, str) else tree
    assume(abs(value) < INT64)
    return value


def build(tree) -> Expr:
    if isinstance(tree, tuple):
        return BUILD[tree[0]](build(tree[1]), build(tree[2]))
    return Symbol(tree, AT_LEAST[tree]) if isinstance(tree, str) else Constant(tree)


@given(trees, environments)
@settings(max_examples=600)
def test_evaluates_as_python_does(tree, environment):
    expected = reference(tree, environment)
    value = build(tree).evaluate(environment)
    assert value == expected and type(value) is int


@given(trees, environments)
@settings(max_examples=600)
def test_printed_text_means_the_same(tree, environment):
    expected = reference(tree, environment)
    scope = {"min": min, "max": max, "ceil_div": PYTHON["ceil_div"], **environment}
    assert eval(repr(build(tree)), scope) == expected


@given(trees, environments, environments)
@settings(max_examples=300)
def test_substitution_is_evaluation_in_two_steps(tree, environment, inner):
    """Replace a by a + b's value: the simplifications that this sets off keep the value."""
    expected = reference(tree, {**environment, "a": inner["a"] + environment["b"]})
    replaced = build(tree).substitute({"a": Symbol("b") + inner["a"]})
    assert replaced.evaluate(environment) == expected
    everything = build(tree).substitute({**environment, "a": inner["a"] + environment["b"]})
    assert everything == Constant(expected)


@given(trees, st.lists(environments, min_size=1, max_size=5))
@settings(max_examples=300)
def test_arrays_evaluate_element_by_element(tree, rows):
    expected = [reference(tree, row) for row in rows]
    arrays = {name: np.array([row[name] for row in rows], np.int64) for name in NAMES}
    value = np.broadcast_to(build(tree).evaluate(arrays), len(rows))
    assert value.tolist() == expected


@given(trees, sizes)
@settings(max_examples=600)
def test_lower_bound_is_one(tree, environment):
    value = reference(tree, environment)
    assert lower_bound(build(tree)) <= value


def test_lower_bounds_that_scheduling_relies_on():
    tokens, rows = Symbol("tokens"), Symbol("rows", at_least=0)
    assert lower_bound(ceil_div(tokens, 64)) >= 1
    assert lower_bound(4 * tokens + 3) == 7
    assert lower_bound(rows) == 0
    assert lower_bound(maximum(tokens - 5 + 1, 0)) == 0


@given(trees, trees)
@settings(max_examples=300)
def test_equal_expressions_hash_alike(left, right):
    try:
        a, b = build(left), build(right)
    except GraphError:
        return
    assert (a == b) <= (hash(a) == hash(b))
    assert (a == b) <= (repr(a) == repr(b))


def test_sizes_that_are_the_same_compare_equal():
    n = Symbol("n")
    assert ceil_div(32 * n, 32) == n
    assert ceil_div(ceil_div(n, 4), 2) == ceil_div(n, 8)
    assert (n * 12) // 4 == n * 3
    assert n * 1 == n + 0 == n - 0 == n // 1 == n
    assert as_expr(7) == Constant(7)


def test_unbound_symbols_and_division_by_zero_are_named():
    n = Symbol("n")
    with pytest.raises(GraphError, match="'n' has no value"):
        (n + 1).evaluate({"m": 1})
    with pytest.raises(GraphError, match="division by zero"):
        Constant(3) // 0
    assert (n + Symbol("m")).symbols() == {"n", "m"}
