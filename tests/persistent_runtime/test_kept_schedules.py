"""Proved schedules on disk: found again as they were, and by nothing but what they depend on."""

import pickle
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest

pytest.importorskip("numba")

from event_tensor.tensors import INFERRED, RUNTIME
from frontend.compile import compile_decode_loop
from persistent_runtime import graph_schedules
from persistent_runtime.cache import schedules as kept_schedules
from persistent_runtime.cache.schedules import KeptSchedules
from persistent_runtime.cpu.compile.disk_cache import cache_directory

PROMPT = list(range(2, 40))


@pytest.fixture
def no_schedules(tmp_path, monkeypatch):
    """A cache without schedules, and without its folder; compiled functions stay where they are."""
    monkeypatch.setattr(kept_schedules, "cache_directory", lambda: tmp_path / "cpu-0")
    return tmp_path / "cpu-0"


def kept_files(folder):
    return sorted(folder.glob("schedule-*.pickle"))


def proofs_forbidden(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a schedule was made that had been kept")

    monkeypatch.setattr(graph_schedules, "build_schedule", refuse)


def assert_same(a, b):
    """Equal in every array and number; objects of the graph by their text."""
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, (tuple, list)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert list(map(repr, a)) == list(map(repr, b))
        assert_same(list(a.values()), list(b.values()))
    elif is_dataclass(a):
        for field in fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, (int, float, str, bool, type(None))):
        assert a == b


@pytest.mark.parametrize("schedule", ["auto", "static", "dynamic", "unfused"])
@pytest.mark.parametrize("family", ["qwen3", "mixtral"])
def test_another_start_finds_what_was_proved(tiny_model, no_schedules, monkeypatch, family,
                                             schedule):
    model = tiny_model(family)
    first = compile_decode_loop(model, workers=2, schedule=schedule)
    made = first.generate(PROMPT, max_new_tokens=12, ignore_eos=True)
    assert len(kept_files(no_schedules)) == len(first.schedules) > 1
    proofs_forbidden(monkeypatch)
    second = compile_decode_loop(model, workers=2, schedule=schedule)
    found = second.generate(PROMPT, max_new_tokens=12, ignore_eos=True, trace_steps=4)
    assert found.output_ids == made.output_ids
    for a, b in zip(first.schedules, second.schedules, strict=True):
        assert a is not b
        assert_same(a, b)
        originals = [s.schedule.table.graph.original is kernel.graph
                     for s, kernel in ((a, first.kernel), (b, second.kernel))]
        assert originals[0] == originals[1]
        assert set(b.schedule.table.graph.tensors()) == set(second.kernel.graph.tensors())


def test_whatever_a_schedule_depends_on_makes_it_another(tiny_model, no_schedules):
    decoder = compile_decode_loop(tiny_model("mixtral"), workers=2)
    kernel = decoder.kernel
    bindings = dict(kernel.schedules[0].schedule.table.bindings)
    samples, shape = kernel.samples(bindings), kernel.parts[0].shape_key(bindings)
    conditions = (kernel.policy, kernel.target, kernel.kernel.kinds)

    def load(graph=kernel.graph, conditions=conditions, shape=shape, samples=samples):
        kept = KeptSchedules(graph, *conditions)
        return kept.load(kept.file(shape, samples))

    assert load() is not None
    other = compile_decode_loop(tiny_model("mixtral", num_hidden_layers=3), workers=2).kernel
    target = replace(kernel.target, dependency_us=kernel.target.dependency_us + 1)
    elsewhere = [{name: values + 1 for name, values in runtime.items()} for runtime in samples]
    assert load(graph=other.graph) is None
    assert load(conditions=("dynamic_early", *conditions[1:])) is None
    assert load(conditions=(conditions[0], target, *conditions[2:])) is None
    assert load(conditions=(*conditions[:2], {**conditions[2], "other": 99})) is None
    assert load(shape=(*shape[:-1], shape[-1] + 1)) is None
    assert load(samples=elsewhere) is None


def test_other_sources_prove_anew(tiny_model, no_schedules, monkeypatch):
    model = tiny_model("llama")
    compile_decode_loop(model, workers=2)
    before = [file.read_bytes() for file in kept_files(no_schedules)]
    monkeypatch.setattr(kept_schedules, "SOURCES", "changed")
    compile_decode_loop(model, workers=2)
    after = [file.read_bytes() for file in kept_files(no_schedules)]
    assert len(before) == len(after) and before != after


@pytest.mark.parametrize("harm", [lambda content: content[:-1], lambda content: b"",
                                  lambda content: content[:200] + b"x" + content[201:],
                                  lambda content: content.replace(b"\n", b"\n ", 1)])
def test_a_damaged_file_is_made_again(tiny_model, no_schedules, harm):
    model = tiny_model("llama")
    expected = compile_decode_loop(model, workers=2).generate(
        PROMPT, max_new_tokens=4, ignore_eos=True).output_ids
    before = [file.read_bytes() for file in kept_files(no_schedules)]
    for file in kept_files(no_schedules):
        file.write_bytes(harm(file.read_bytes()))
    assert compile_decode_loop(model, workers=2).generate(
        PROMPT, max_new_tokens=4, ignore_eos=True).output_ids == expected
    assert [file.read_bytes() for file in kept_files(no_schedules)] == before


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(kept_schedules, "cache_directory", lambda: tmp_path / "file" / "cpu-0")
    decoder = compile_decode_loop(tiny_model("llama"), workers=2)
    assert decoder.generate(PROMPT, max_new_tokens=4, ignore_eos=True).output_ids


def test_large_schedules_are_not_kept(tiny_model, no_schedules, monkeypatch):
    monkeypatch.setattr(kept_schedules, "MOST_BYTES", 1000)
    compile_decode_loop(tiny_model("llama"), workers=2)
    assert not kept_files(no_schedules)


def test_schedules_lie_beside_compiled_functions(tiny_model):
    compile_decode_loop(tiny_model("llama"), workers=2)
    assert kept_files(cache_directory())


def test_markers_are_themselves_again():
    assert pickle.loads(pickle.dumps([INFERRED, RUNTIME])) == [INFERRED, RUNTIME]
    assert pickle.loads(pickle.dumps(RUNTIME)) is RUNTIME
