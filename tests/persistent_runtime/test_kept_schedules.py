"""Proved schedules on disk: found again as they were, and by nothing but what they depend on."""

import pickle
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
from conftest import HANG_S, command_environment

pytest.importorskip("numba")

from event_tensor.tensors import INFERRED, RUNTIME
from frontend.compile import compile_decode_loop
from persistent_runtime import graph_schedules
from persistent_runtime.cache import schedules as kept_schedules
from persistent_runtime.cache.kept_file import changed_keys
from persistent_runtime.cache.schedules import SCHEDULES, KeptSchedules
from persistent_runtime.cache.stores import read_key
from persistent_runtime.cpu.compile.disk_cache import FUNCTIONS
from persistent_runtime.function_table import FunctionTable

PROMPT = list(range(2, 40))


@pytest.fixture
def no_schedules(tmp_path, monkeypatch):
    """A cache without schedules, and without its folder; compiled functions stay where they are."""
    return elsewhere(monkeypatch, tmp_path)


def elsewhere(monkeypatch, folder, **key):
    """Schedules are kept below that folder; key: what changes in what they all depend on."""
    store = replace(SCHEDULES, base=lambda: folder, key=lambda: SCHEDULES.key() | key)
    monkeypatch.setattr(kept_schedules, "SCHEDULES", store)
    return store.directory()


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
    assert load(conditions=(*conditions[:2], FunctionTable(conditions[2].variants[::-1]))) is None
    assert load(shape=(*shape[:-1], shape[-1] + 1)) is None
    assert load(samples=elsewhere) is None


def test_other_sources_prove_anew(tiny_model, no_schedules, tmp_path, monkeypatch):
    model = tiny_model("llama")
    compile_decode_loop(model, workers=2)
    before = [file.name for file in kept_files(no_schedules)]
    others = elsewhere(monkeypatch, tmp_path, **{"rows/layout.py": "changed"})
    assert others != no_schedules and not kept_files(others)
    compile_decode_loop(model, workers=2)
    assert before and before == [file.name for file in kept_files(others)]
    (key,) = (changed_keys(f.key, kept_schedules.SCHEDULES.key())
              for f in kept_schedules.SCHEDULES.folders() if f.path == no_schedules)
    assert key == ["rows/layout.py"]


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
    elsewhere(monkeypatch, tmp_path / "file")
    decoder = compile_decode_loop(tiny_model("llama"), workers=2)
    assert decoder.generate(PROMPT, max_new_tokens=4, ignore_eos=True).output_ids


def test_large_schedules_are_not_kept(tiny_model, no_schedules, monkeypatch):
    monkeypatch.setattr(kept_schedules, "MOST_BYTES", 1000)
    compile_decode_loop(tiny_model("llama"), workers=2)
    assert not kept_files(no_schedules)


def test_schedules_have_a_folder_that_no_compiler_or_processor_decides(tiny_model):
    compile_decode_loop(tiny_model("llama"), workers=2)
    folder = SCHEDULES.directory()
    assert kept_files(folder)
    key = read_key(folder)
    assert key == SCHEDULES.key() and not {"numba", "llvmlite", "processor"} & set(key)
    assert not kept_files(FUNCTIONS.directory())


GPU_START = """
import sys
import frontend.compile
from persistent_runtime.gpu.backend import CudaBackend
from persistent_runtime.gpu.interpret import InterpretedBackend
frontend.compile.find_backend = lambda name: InterpretedBackend()
decoder = frontend.compile.compile_decode_loop("demo", workers=2, max_context=64)
print(decoder.backend, len(decoder.schedules), *sys.modules.keys() & {"numba", "llvmlite"})
"""


def test_a_start_on_a_gpu_imports_no_compiler_of_the_cpu(tmp_path):
    """The interpreted worker stands for the GPU: it has all of a start but the driver."""
    pytest.importorskip("triton")
    environment = command_environment(EVENT_TENSOR_CACHE=str(tmp_path), TRITON_INTERPRET="1")
    for _ in range(2):  # nothing kept, and all of it
        done = subprocess.run([sys.executable, "-c", GPU_START], capture_output=True, text=True,
                              timeout=HANG_S, env=environment)
        assert done.stdout.split() == ["interpreter", "1"], done.stderr
    assert sorted(folder.name.partition("-")[0] for folder in tmp_path.iterdir()) == [
        "rope", "schedules"]


def test_markers_are_themselves_again():
    assert pickle.loads(pickle.dumps([INFERRED, RUNTIME])) == [INFERRED, RUNTIME]
    assert pickle.loads(pickle.dumps(RUNTIME)) is RUNTIME
