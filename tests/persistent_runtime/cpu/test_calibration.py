"""The machine's calibration: kept, found again, replaced where it is another's, never impossible.

No test looks at a measured value; those that count stand in for the measurement.
"""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

pytest.importorskip("numba")

from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop
from frontend.report import doctor
from persistent_runtime.cache.kept_file import KeptFile
from persistent_runtime.cpu.calibration import measure as measuring
from persistent_runtime.cpu.calibration import record
from persistent_runtime.cpu.calibration.measure import Rates, measure
from persistent_runtime.megakernel import Megakernel
from scheduling.target import generic_cpu, task_costs_us

RATES = Rates(43.21, 30.0, 160.0, 801.5, 0.0812, 0.0777, 0.0512)
ROUNDED = {"bandwidth_gb_s": 43.0, "worker_gb_s": 30.0, "cache_gb_s": 160.0, "gflops": 800.0,
           "task_us": 0.081, "dependency_us": 0.078, "pop_us": 0.051}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Measures as a user's start does, with an empty store; → the rates to find, one per call."""
    monkeypatch.delenv("EVENT_TENSOR_MACHINE")
    monkeypatch.setattr(record, "CALIBRATIONS", replace(record.CALIBRATIONS,
                                                        base=lambda: tmp_path))
    monkeypatch.setattr(record, "available_cores", lambda: 2)
    results = []
    monkeypatch.setattr(record, "measure", lambda kernel, product: results.pop(0))
    return results


@pytest.fixture(scope="module")
def kernel(tiny_model):
    return compile_decode_loop(tiny_model("llama"), workers=2).kernel


def target_of(kernel):
    return record.calibrated(kernel.kernel, generic_cpu(2))


def kept(folder):
    return list(folder.glob("machine-*/workers-*.rates"))


def values_in(target):
    return {name: asdict(target)[name] for name in ROUNDED}


def test_it_is_measured_once_and_kept(kernel, measured, tmp_path):
    measured.append(RATES)
    first = target_of(kernel)
    assert values_in(first) == ROUNDED
    assert target_of(kernel) == first and not measured
    assert [file.name for file in kept(tmp_path)] == ["workers-2-float32.rates"]
    assert record.kept_calibrations() == [{"workers": 2, "dtype": "float32", **ROUNDED}]


def test_another_machines_record_is_replaced(kernel, measured, tmp_path):
    measured += [RATES, replace(RATES, gflops=90.0), RATES]
    target_of(kernel)
    (file,) = kept(tmp_path)
    key = record.machine_key() | {"workers": "2", "dtype": "float32"}
    for changed in ("machine", "cores"):
        foreign = {**ROUNDED, "bandwidth_gb_s": 21.0}
        KeptFile(file, key | {changed: "another"}).save(json.dumps(foreign).encode())
        assert not record.kept_calibrations()
        assert target_of(kernel).bandwidth_gb_s == ROUNDED["bandwidth_gb_s"]
    assert not measured and len(record.kept_calibrations()) == 1


@pytest.mark.parametrize("content", [
    b"", b"{}", b"[1]", b"no json", json.dumps(ROUNDED | {"task_us": 0.0}).encode(),
    json.dumps(ROUNDED | {"gflops": "many"}).encode(),
    json.dumps(ROUNDED | {"bandwidth_gb_s": float("nan")}).encode(),
    json.dumps(ROUNDED | {"bandwidth_gb_s": 401.0}).encode()])
def test_a_record_of_no_use_is_measured_anew(kernel, measured, tmp_path, content):
    measured += [RATES, RATES]
    expected = target_of(kernel)
    (file,) = kept(tmp_path)
    KeptFile(file, record.machine_key() | {"workers": "2", "dtype": "float32"}).save(content)
    assert target_of(kernel) == expected and not measured
    file.write_bytes(file.read_bytes()[:-1])
    measured.append(RATES)
    assert target_of(kernel) == expected and not measured


def test_a_cache_that_cannot_be_written_is_no_obstacle(kernel, measured, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(record, "CALIBRATIONS", replace(record.CALIBRATIONS,
                                                        base=lambda: tmp_path / "file"))
    measured += [RATES, RATES]
    assert target_of(kernel) == target_of(kernel) and not measured


def test_impossible_values_stay_the_assumed_ones(kernel, measured):
    measured.append(Rates(1e6, -1.0, 160.0, 801.5, -0.2, float("nan"), 30.0))
    target, assumed = target_of(kernel), generic_cpu(2)
    assert (target.cache_gb_s, target.gflops) == (160.0, 800.0)
    for name in ("bandwidth_gb_s", "task_us", "dependency_us", "pop_us"):
        assert getattr(target, name) == getattr(assumed, name)
    assert len(record.kept_calibrations()) == 1  # what was put in their place is sensible


def test_a_busy_machine_is_measured_another_time(kernel, measured, tmp_path):
    measured += [None, RATES]
    assert target_of(kernel) == generic_cpu(2) and not kept(tmp_path)
    assert values_in(target_of(kernel)) == ROUNDED


def test_nothing_is_measured_where_it_would_say_nothing(kernel, measured, monkeypatch):
    monkeypatch.setattr(record, "available_cores", lambda: 1)
    assert target_of(kernel) == generic_cpu(2)  # more workers than run at once
    monkeypatch.undo()  # the tests' own environment
    assert target_of(kernel) == generic_cpu(2)


def test_an_unknown_machine_is_refused(monkeypatch):
    monkeypatch.setenv("EVENT_TENSOR_MACHINE", "h200")
    with pytest.raises(UserError, match="EVENT_TENSOR_MACHINE is h200"):
        record.is_generic()


def test_other_values_make_other_schedules(tiny_model, measured):
    model = tiny_model("llama")
    measured += [RATES, replace(RATES, dependency_us=5.0)]
    first = compile_decode_loop(model, workers=2)
    again = compile_decode_loop(model, workers=2)
    assert again.kernel.target == first.kernel.target and len(measured) == 1
    for file in record.CALIBRATIONS.directory().glob("workers-*"):
        file.unlink()
    other = compile_decode_loop(model, workers=2)
    files = [decoder.kernel.parts[0]._kept.file((), ()).path for decoder in (first, again, other)]
    assert files[0] == files[1] != files[2]
    assert other.tiles == first.tiles  # tiles are chosen before anything is measured


def test_a_kernel_without_products_assumes(kernel, measured):
    from benchmarks.protocol.dependency import chain_graph

    other = Megakernel(chain_graph(1, 2), workers=2)
    assert other.target == generic_cpu(2)


def test_the_measurement_runs(kernel, monkeypatch):
    """Every case runs to its end and has a time, whatever that is."""
    monkeypatch.setattr(measuring, "stream_bytes", lambda: 4 << 20)
    monkeypatch.setattr(measuring, "last_level_cache_bytes", lambda: 1 << 20)
    monkeypatch.setattr(measuring, "QUIET_SHARE", 0.0)
    rates = measure(kernel.kernel, record.product_of(kernel.kernel))
    assert np.isfinite(list(asdict(rates).values())).all()
    assert min(rates.bandwidth_gb_s, rates.worker_gb_s, rates.cache_gb_s, rates.gflops) > 0
    monkeypatch.setattr(measuring, "QUIET_SHARE", 2.0)
    assert measure(kernel.kernel, record.product_of(kernel.kernel)) is None


def test_doctor_shows_them(kernel, measured, monkeypatch, capsys):
    measured.append(RATES)
    target_of(kernel)
    monkeypatch.setattr(doctor, "check_generation", lambda progress: {
        "name": "generation", "passed": True, "detail": ""})
    found = doctor.examine()
    assert found["calibrations"] == [{"workers": 2, "dtype": "float32", **ROUNDED}]
    assert found["calibrated"]
    doctor.show(found)
    text = " ".join(capsys.readouterr().out.split())
    assert "measured, 2 workers" in text and "43 GB/s (30 by one alone, 160 from caches)" in text
    monkeypatch.setenv("EVENT_TENSOR_MACHINE", "generic")
    doctor.show(doctor.examine())
    assert "EVENT_TENSOR_MACHINE is generic" in capsys.readouterr().out


def test_a_step_that_fits_reads_from_caches(kernel):
    table = kernel.schedules[0].schedule.table if kernel.schedules else kernel.schedule(
        {"tokens": 1, "logit_rows": 1, "context": 1, "kv_splits": 1}).schedule.table
    plain = replace(generic_cpu(2), gflops=1e9)
    fits = replace(plain, cache_gb_s=400.0, cache_bytes=int(table.bytes.sum()) + 1)
    too_small = replace(fits, cache_bytes=int(table.bytes.sum()) - 1)
    np.testing.assert_array_equal(task_costs_us(table, too_small), task_costs_us(table, plain))
    read = table.bytes > 0
    np.testing.assert_allclose((task_costs_us(table, fits) - fits.task_us)[read],
                               (task_costs_us(table, plain) - plain.task_us)[read] / 10)
    settled = too_small.for_step(table)
    assert settled.for_step(replace(table, bytes=table.bytes * 0)) == settled


def test_one_alone_gets_more_than_its_share(kernel):
    table = kernel.schedule({"tokens": 1, "logit_rows": 1, "context": 1,
                             "kv_splits": 1}).schedule.table
    plain = replace(generic_cpu(2), gflops=1e9)
    costs = task_costs_us(table, plain) - plain.task_us
    faster = task_costs_us(table, replace(plain, worker_gb_s=30.0)) - plain.task_us
    single = (np.diff(table.call_begin) == 1)[table.call] & (table.bytes > 0)
    assert single.any()
    np.testing.assert_allclose(faster[single], costs[single] * 20 / 30)
    np.testing.assert_allclose(faster[~single], costs[~single])
