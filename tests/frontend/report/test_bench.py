"""bench: its JSON contract, its tables, and that a speed never comes without its correctness."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import frontend.report.bench.baselines
from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop
from frontend.config.sampling import Sampling
from frontend.report.bench.baselines import require_available
from frontend.report.bench.baselines.engine import Work
from frontend.report.bench.baselines.process import BaselineProcess
from frontend.report.bench.check import smallest_drawn
from frontend.report.bench.run import BenchOptions, Timings, kv_bytes, run_bench
from frontend.report.bench.table import COLUMNS, show, to_markdown
from frontend.report.machine import commit, versions, wait_until_idle

SIDE = {"ttft_ms", "tpot_ms", "tokens_per_second", "pp_tokens_per_second", "tg_tokens_per_second",
        "bandwidth_gb_s", "bandwidth_fraction", "correctness", "peak_rss_mb", "sampled"}
OURS = SIDE | {"peak_bandwidth_gb_s", "compare", "model", "dtype", "workers", "versions", "cpu",
               "commit", "date", "other_programs_cpu_share"}
THEIRS = SIDE | {"ratio", "ttft_ratio", "version", "load_s", "warm_up_s"}
WORK = Work("transformers", "nowhere", "float32", 1, "cpu", [], [1, 2], 2, sampled=False, seed=0)


@pytest.fixture(scope="module", autouse=True)
def small_buffer():
    """What memory bandwidth comes out is not tested, so that a small buffer does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("frontend.report.bench.bandwidth.BUFFER_BYTES", 2**20)
        yield


@pytest.fixture(scope="module")
def record(tiny_model, small_buffer):
    return run_bench(BenchOptions(
        str(tiny_model("qwen3")), prompt_tokens=9, new_tokens=7, depth=4, repeats=2, workers=2,
        sampled=True, compare=("transformers",)))


def test_contract(record):
    assert set(record) >= OURS
    json.dumps(record)
    baseline = record["compare"]["transformers"]
    assert set(baseline) >= THEIRS
    for side in (record, baseline):
        assert set(side["tpot_ms"]) == {"p50", "p90", "p99"}
        assert side["correctness"]["tokens_equal"] == side["correctness"]["tokens_compared"] == 7
        assert side["sampled"]["correctness"]["tokens_possible"] == 7
        assert side["sampled"]["sampling"]["top_k"] == 50
        assert side["correctness"]["max_abs_logit_error"] < 1e-3
        assert side["sampled"]["correctness"]["max_abs_logit_error"] < 1e-3
        assert side["bandwidth_gb_s"] > 0
    for ours, theirs in ((record, baseline), (record["sampled"], baseline["sampled"])):
        assert theirs["ratio"] == pytest.approx(
            theirs["tpot_ms"]["p50"] / ours["tpot_ms"]["p50"], rel=0.01)


def test_the_table_has_correctness_beside_every_speed(record, capsys):
    show(record)
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith((" event-tensor", " transformers"))]
    assert len(rows) == 6
    for row, test in zip(rows, ["pp9 @ d4", "tg7 @ d4", "tg7 @ d4 sampled"] * 2, strict=True):
        assert f" {test}  " in row
        assert " 7/7 " in row
    assert any("measured read bandwidth" in line for line in lines)
    assert any("warmed up in" in line for line in lines)


def test_markdown(record):
    lines = to_markdown(record).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 6
    assert {line.count("|") for line in table} == {len(COLUMNS) + 1}
    assert "tg7 @ d4 sampled" in table[4]


def test_timings():
    timings = Timings(prompt_tokens=100)
    timings.add(0, [50_000_000, 60_000_000, 80_000_000])
    timings.add(0, [100_000_000, 110_000_000, 130_000_000])
    record = timings.record(10**6, [1.0, 1.0])
    assert record["ttft_ms"] == 75
    assert record["pp_tokens_per_second"] == {"mean": 1500.0, "std": 707.11}
    assert record["tg_tokens_per_second"] == {"mean": pytest.approx(66.67), "std": 0.0}
    assert record["tpot_ms"]["p50"] == 15
    assert (record["bandwidth_gb_s"], record["bandwidth_fraction"]) == (0.07, 0.067)


def test_which_tokens_could_have_been_drawn():
    logits = np.log(np.array([[0.5, 0.3, 0.15, 0.05], [0.05, 0.05, 0.1, 0.8]], np.float32))
    least = np.exp(smallest_drawn(logits, Sampling(temperature=1.0, top_k=3, top_p=0.8)))
    assert least == pytest.approx([0.3, 0.8])


def test_logits_of_the_last_tokens(tiny_model):
    decoder = compile_decode_loop(tiny_model("llama"), workers=1)
    ids = list(range(30))
    logits = decoder.logits(ids)
    assert np.array_equal(decoder.logits(ids, last=30), logits)
    # rows of another step stand in other blocks of products, whose sums are in another order;
    # logits of two tokens are some 1e5 times as far from each other
    for last in (1, 11, 29):
        assert np.abs(decoder.logits(ids, last) - logits[-last:]).max() <= 1e-5
    for last in (-1, 0, 31):
        with pytest.raises(UserError, match=f"last is {last}; give from 1 to 30"):
            decoder.logits(ids, last)


def test_kv_bytes_follow_the_windows(tiny_model):
    decoder = compile_decode_loop(tiny_model("mistral", sliding_window=8), workers=1)
    full = compile_decode_loop(tiny_model("mistral", sliding_window=None), workers=1)
    assert kv_bytes(decoder, 100) == kv_bytes(decoder, 8) == kv_bytes(full, 8)
    assert kv_bytes(full, 100) == 2 * 100 * 2 * 16 * 4 * 2  # k and v, heads, head_dim, f32, layers


@pytest.mark.parametrize(("options", "word"), [
    ({"compare": ("magic",)}, "supported: transformers, torch-compile, llama-cpp, cuda-graph"),
    ({"compare": ("transformers",) * 2}, "names transformers twice"),
    ({"new_tokens": 1}, "--new-tokens"), ({"prompt_tokens": 0}, "--prompt-tokens"),
    ({"repeats": 0}, "--repeats"), ({"depth": -1}, "--depth")])
def test_options_that_make_no_sense(options, word):
    with pytest.raises(UserError, match=word):
        BenchOptions("demo", **options)


@pytest.mark.parametrize("package", ["llama_cpp", "gguf"])
def test_a_missing_package_is_one_sentence(command, monkeypatch, package):
    find = frontend.report.bench.baselines.importlib.util.find_spec
    monkeypatch.setattr(frontend.report.bench.baselines.importlib.util, "find_spec",
                        lambda name: None if name == package else find(name))
    with pytest.raises(UserError, match=r"pip install 'event-tensor\[bench\]'"):
        require_available("llama-cpp", "cpu")


def test_what_this_machine_cannot_compare(command, monkeypatch):
    done = command("bench", "demo", "--backend", "cpu", "--compare", "cuda-graph")
    assert done.returncode == 2
    assert done.stderr == ("error: --compare cuda-graph needs a GPU and --backend cuda; leave it "
                           "out\n")
    monkeypatch.setenv("CXX", "no-such-compiler")
    done = command("bench", "demo", "--backend", "cpu", "--compare", "torch-compile")
    assert done.returncode == 2
    assert "needs a C++ compiler" in done.stderr


@pytest.mark.skipif(not find_spec("llama_cpp"), reason="the extra `bench` is not installed")
def test_a_baseline_that_fails_says_why(tmp_path):
    with pytest.raises(UserError, match=r"transformers has failed \(\w+Error: "):
        BaselineProcess(WORK)
    with pytest.raises(UserError, match="llama.cpp cannot load the model"):
        BaselineProcess(replace(WORK, engine="llama-cpp", model=str(tmp_path / "none.gguf")))


def test_a_baseline_that_is_killed_is_noticed(tiny_model):
    with BaselineProcess(replace(WORK, model=str(tiny_model("qwen3")))) as process:
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="transformers has failed .exit code -9"):
            process.run("greedy")


def test_a_waiting_baseline_is_idle(tiny_model):
    work = Work("transformers", str(tiny_model("qwen3")), "float32", 2, "cpu", [], [1, 2, 3], 4,
                sampled=False, seed=0)
    with BaselineProcess(work) as process:
        process.run("greedy")
        assert wait_until_idle([process.pid], timeout_s=60)


def test_a_working_process_is_not_idle(monkeypatch):
    monkeypatch.setattr("frontend.report.machine.SETTLE_S", 1.0)  # enough on the busiest machine
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert not wait_until_idle([busy.pid], timeout_s=0.01)
    finally:
        busy.kill()
        busy.wait()


@pytest.mark.slow
def test_torch_compile_makes_the_same_tokens(tiny_model):
    record = run_bench(BenchOptions(
        str(tiny_model("qwen3")), prompt_tokens=9, new_tokens=5, depth=4, repeats=1, workers=2,
        sampled=True, compare=("torch-compile",)))
    found = record["compare"]["torch-compile"]
    assert found["correctness"]["tokens_equal"] == 5
    assert found["sampled"]["correctness"]["tokens_possible"] == 5
    assert found["warm_up_s"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_cuda_graphs_make_the_same_tokens(tiny_model, monkeypatch):
    monkeypatch.setattr("frontend.report.bench.bandwidth.CUDA_BUFFER_BYTES", 2**24)
    record = run_bench(BenchOptions(
        str(tiny_model("qwen3")), prompt_tokens=9, new_tokens=7, depth=4, repeats=2,
        backend="cuda", sampled=True, compare=("transformers", "cuda-graph")))
    for side in (record, *record["compare"].values()):
        assert side["correctness"]["tokens_equal"] == 7
        assert side["sampled"]["correctness"]["tokens_possible"] == 7


def test_command(command, tiny_model):
    done = command("bench", tiny_model("qwen3"), "--prompt-tokens", 5, "--new-tokens", 4,
                   "--repeats", 1, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["correctness"]["tokens_equal"] == 4


def test_command_refuses_an_unknown_baseline(command):
    done = command("bench", "demo", "--compare", "transformers,magic")
    assert done.returncode == 2
    assert done.stderr == ("error: --compare magic is not supported; supported: transformers, "
                           "torch-compile, llama-cpp, cuda-graph\n")


def test_provenance(monkeypatch):
    assert versions()["numba"]
    monkeypatch.delenv("EVENT_TENSOR_COMMIT", raising=False)
    found = commit()
    assert found is None or len(found.removesuffix("-dirty")) == 40
    monkeypatch.setenv("EVENT_TENSOR_COMMIT", "named")  # a copy without its own history
    assert commit() == "named"
