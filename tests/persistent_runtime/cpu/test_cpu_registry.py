"""The CPU's intrinsics and arithmetic, bodies from outside the package, and the disk cache."""

import ast
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import HANG_S

pytest.importorskip("numba")

import numba as nb
import torch

from event_tensor.device_function import DeviceFunction, Tile, reads, writes
from event_tensor.errors import UserError
from persistent_runtime.cache.stores import KEY_FILE
from persistent_runtime.cpu.compile import disk_cache, registry
from persistent_runtime.cpu.jit import interrupt_deferred
from persistent_runtime.cpu.launch import CpuKernel
from persistent_runtime.cpu.single_tile import run_tile
from persistent_runtime.cpu.vectors import intrinsics, numerics
from persistent_runtime.cpu.vectors.emit import CONVERTS_FLOAT16
from persistent_runtime.formats import DTYPES
from persistent_runtime.function_table import FunctionTable, variant
from persistent_runtime.functions import dense as df


def test_exp_is_within_two_ulp():
    @nb.njit
    def apply(x, out):
        for i in range(len(x)):
            out[i] = numerics.exp(x[i])

    edges = [0.0, -0.0, -87.3, -87.4, -1e9, -np.inf, 89.0, 1e9, np.inf]
    x = np.concatenate([np.linspace(-87.3, 88.3, 200001), edges]).astype(np.float32)
    out = np.empty_like(x)
    apply(x, out)
    with np.errstate(over="ignore"):
        exact = np.exp(x.astype(np.float64))
    usual = (exact > 2.0**-126) & (exact < 2.0**128)
    error = np.abs(out[usual] - exact[usual]) / np.spacing(exact[usual].astype(np.float32))
    assert error.max() < 2
    assert (out[exact <= 2.0**-126] <= 2.0**-126).all() and (out[exact == 0] == 0).all()
    assert (out[exact >= 2.0**128] == np.inf).all()


def test_storage_round_trips_like_torch():
    like = {dtype: registry.zero_of(dtype) for dtype in DTYPES
            if dtype != "float16" or CONVERTS_FLOAT16}

    @nb.njit
    def through(x, kept, back, zero):
        for i in range(len(x)):
            kept[i] = intrinsics.narrow(x[i], zero)
            back[i] = intrinsics.widen(kept[i])

    rng = np.random.default_rng(6)
    bits = rng.integers(-2**31, 2**31, 100000).astype(np.int32)
    x = np.concatenate([bits.view(np.float32), rng.standard_normal(1000).astype(np.float32),
                        np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], np.float32)])
    for dtype, zero in like.items():
        kept, back = np.empty(len(x), zero.dtype), np.empty(len(x), np.float32)
        through(x, kept, back, zero)
        expected = torch.tensor(x).to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(back, expected)


def test_atomics_and_clock():
    @nb.njit
    def exercise(counter):
        before = intrinsics.monotonic_ns()
        address = intrinsics.address_of(intrinsics.pointer_to(counter, np.int32(0)))
        old = intrinsics.atomic_add(address, np.int32(5))
        intrinsics.store_release(address + 4, np.int32(7))
        intrinsics.pause()
        intrinsics.yield_thread()
        return old, intrinsics.load_acquire(address + 4), intrinsics.monotonic_ns() - before

    counter = np.array([3, 0], np.int32)
    exercise.compile("(int64,)")
    begin_ns = time.monotonic_ns()
    old, stored_value, elapsed = exercise(counter.ctypes.data)
    around = time.monotonic_ns() - begin_ns
    assert (old, stored_value, counter[0]) == (3, 7, 8)
    assert 0 <= elapsed <= around


doubled = DeviceFunction("doubled", axes=("i",),
                         operands=(reads("x", Tile("i", 4)), writes("out", Tile("i", 4))))


def test_a_body_from_outside_the_package(tmp_path, monkeypatch):
    from persistent_runtime.cpu.bodies.arguments import FLOAT32, operand, record_offsets

    offsets = record_offsets(doubled)

    @registry.cpu_body(doubled)
    def body(arguments, tile, step, scratch, formats):
        for k in range(tile[0] * 4, tile[0] * 4 + 4):
            operand(arguments, offsets.out, FLOAT32)[k] = (
                2 * operand(arguments, offsets.x, FLOAT32)[k])

    monkeypatch.setenv("EVENT_TENSOR_CACHE", str(tmp_path))
    before = nb.config.CACHE_DIR
    x, out = np.arange(8, dtype=np.float32), np.zeros(8, np.float32)
    for tile in range(2):
        run_tile(doubled, "float32", {"x": x, "out": out}, (tile,))
    np.testing.assert_array_equal(out, 2 * x)
    assert nb.config.CACHE_DIR == before
    assert list(tmp_path.rglob("doubled*.compiled"))


def test_unusable_requests_are_refused():
    with pytest.raises(UserError, match="no CPU body"):
        registry.compile_body(DeviceFunction("nobody", (), ()), "float32")
    with pytest.raises(UserError, match="int3"):
        registry.compile_body(df.embed_tokens, "int3")


COMPILE_TWO = """
from persistent_runtime.functions import dense as df
from persistent_runtime.cpu.compile import registry
for dtype in ("float32", "bfloat16"):
    registry.compile_body(df.embed_tokens, dtype)
print([(c.cache_hit, c.note, c.reason) for c in registry.COMPILATIONS])
"""
HITS = [(True, "", "")] * 2
FIRST = [(False, "", "first start with this cache")] * 2


def start_compiling(cache):
    return subprocess.Popen([sys.executable, "-c", COMPILE_TWO], stdout=subprocess.PIPE, text=True,
                            env=os.environ | {"EVENT_TENSOR_CACHE": str(cache)})


def compilations(process):
    output, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == 0
    return ast.literal_eval(output)


def compile_in_new_process(cache):
    return compilations(start_compiling(cache))


def truncated(content):
    return content[:len(content) // 2]


def without_header(content):
    return content.partition(b"\n")[2]


def flipped(content):
    return content[:-100] + bytes([content[-100] ^ 1]) + content[-99:]


def without_key(content):
    return b'{"sha256": "", "key": null}\n' + content


DAMAGE = {"truncated": truncated, "empty": lambda content: b"", "noise": lambda content: b"\0" * 99,
          "no key": without_key, "header lost": without_header, "a bit flipped": flipped}


def test_cache_hits_in_a_second_process_and_damage_is_repaired(tmp_path):
    assert compile_in_new_process(tmp_path) == FIRST
    assert compile_in_new_process(tmp_path) == HITS
    entries = list(tmp_path.rglob("*.compiled"))
    assert len(entries) == 2
    kinds = list(DAMAGE)
    for names in zip(kinds[::2], kinds[1::2], strict=True):
        for entry, name in zip(entries, names, strict=True):
            entry.write_bytes(DAMAGE[name](entry.read_bytes()))
        records = compile_in_new_process(tmp_path)
        assert all(not hit and "replaced a damaged entry" in note and reason == "damaged"
                   for hit, note, reason in records), names
        assert compile_in_new_process(tmp_path) == HITS


def test_an_interrupt_waits_for_the_compiler():
    reached = []
    with pytest.raises(KeyboardInterrupt), interrupt_deferred():
        signal.raise_signal(signal.SIGINT)
        reached.append("the end")
    assert reached
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_kernels_of_one_process_share_the_machine_code():
    """A second one would be loaded again, 0.1 MB each time, and never be given back."""
    kinds = FunctionTable((variant(df.embed_tokens, "float32"),))
    CpuKernel(kinds, 1)
    compiled = len(registry.COMPILATIONS)
    CpuKernel(kinds, 2)
    assert len(registry.COMPILATIONS) == compiled


def test_two_processes_may_start_cold_at_once(tmp_path):
    first, second = start_compiling(tmp_path), start_compiling(tmp_path)
    assert all(not note for process in (first, second) for _, note, _ in compilations(process))
    assert compile_in_new_process(tmp_path) == HITS
    assert not [path for path in tmp_path.rglob("tmp*")]


def test_a_cache_may_be_moved(tmp_path):
    compile_in_new_process(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert compile_in_new_process(tmp_path / "b") == HITS


def test_a_miss_names_the_key_that_changed(tmp_path):
    compile_in_new_process(tmp_path)
    (folder,) = tmp_path.glob("cpu-*")
    key = json.loads((folder / KEY_FILE).read_text()) | {
        "numba": "0.1", "cpu/worker/worker.py": "0"}
    (folder / KEY_FILE).write_text(json.dumps(key))
    folder.rename(tmp_path / "cpu-other")
    assert compile_in_new_process(tmp_path) == [
        (False, "", "changed: numba, cpu/worker/worker.py")] * 2
    (entry, _) = folder.glob("*.compiled")
    header, _, payload = entry.read_bytes().partition(b"\n")
    record = json.loads(header)
    record["key"] = dict.fromkeys(record["key"], "another file")
    entry.write_bytes(json.dumps(record).encode() + b"\n" + payload)
    assert sorted(compile_in_new_process(tmp_path)) == [
        (False, "", "changed: source of embed_tokens"), (True, "", "")]


def test_cache_command_lists_and_clears(command, tmp_path, monkeypatch):
    compile_in_new_process(tmp_path)
    (folder,) = tmp_path.glob("cpu-*")
    stale = tmp_path / "cpu-0123"
    stale.mkdir()
    (stale / KEY_FILE).write_text(json.dumps({"numba": "0.1"}))
    monkeypatch.setenv("EVENT_TENSOR_CACHE", str(tmp_path))
    shown = command("cache").stdout
    assert folder.name in shown and "current" in shown and "other numba" in shown
    entries = {e["name"]: e for e in json.loads(command("cache", "--json").stdout)["entries"]}
    assert entries[folder.name]["current"] and entries[folder.name]["functions"] == 2
    assert entries[folder.name]["changed"] == [] and "numba" in entries[stale.name]["changed"]
    assert command("cache", "--clear-stale").returncode == 0
    assert list(tmp_path.iterdir()) == [folder]
    record = json.loads(command("cache", "--clear", "--json").stdout)
    assert record["removed_bytes"] == record["bytes"] > 0
    assert list(tmp_path.iterdir()) == []
    assert command("cache").returncode == 0


def test_unwritable_cache_is_reported_and_survived(tmp_path):
    (tmp_path / "file").write_text("")
    records = compile_in_new_process(tmp_path / "file")
    assert all(not hit and "EVENT_TENSOR_CACHE" in note for hit, note, _ in records)


def test_another_numba_has_another_cache(monkeypatch):
    before = disk_cache.FUNCTIONS.directory()
    assert disk_cache.FUNCTIONS.directory() == before
    monkeypatch.setattr(disk_cache.nb, "__version__", "0.0")
    assert disk_cache.FUNCTIONS.directory() != before
