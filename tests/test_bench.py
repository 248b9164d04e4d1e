"""bench: its JSON contract, and that a speed never comes without its correctness."""

import json

import pytest

from event_tensor.errors import UserError
from frontend.bench import BenchOptions, kv_bytes, run_bench, show
from frontend.compile import compile_decode_loop
from frontend.machine import commit, versions

OURS = {"ttft_ms", "tpot_ms", "tokens_per_second", "bandwidth_gb_s", "peak_bandwidth_gb_s",
        "bandwidth_fraction", "correctness", "compare", "peak_rss_mb", "model", "dtype", "workers",
        "versions", "cpu", "commit", "date", "other_programs_cpu_share"}


@pytest.fixture(scope="module", autouse=True)
def small_buffer():
    """What memory bandwidth comes out is not tested, so that a small buffer does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("frontend.bandwidth.BUFFER_BYTES", 2**20)
        yield


@pytest.fixture(scope="module")
def record(tiny_model, small_buffer):
    return run_bench(BenchOptions(
        str(tiny_model("qwen3")), prompt_tokens=9, new_tokens=7, depth=4, repeats=2, workers=2,
        compare=("transformers",)))


def test_contract(record):
    assert OURS <= set(record)
    json.dumps(record)
    assert record["correctness"]["tokens_equal"] == record["correctness"]["tokens_compared"] == 7
    assert record["correctness"]["max_abs_logit_error"] < 1e-3
    baseline = record["compare"]["transformers"]
    assert set(baseline["tpot_ms"]) == {"p50", "p90", "p99"}
    assert baseline["ratio"] == pytest.approx(
        baseline["tpot_ms"]["p50"] / record["tpot_ms"]["p50"], rel=0.01)
    assert record["bandwidth_gb_s"] > 0


def test_the_table_shows_correctness_below_the_speed(record, capsys):
    show(record)
    text = capsys.readouterr().out
    assert text.index("TPOT p50") < text.index("7 of 7 tokens equal those of transformers float32")


def test_kv_bytes_follow_the_windows(tiny_model):
    decoder = compile_decode_loop(tiny_model("mistral", sliding_window=8), workers=1)
    full = compile_decode_loop(tiny_model("mistral", sliding_window=None), workers=1)
    assert kv_bytes(decoder, 100) == kv_bytes(decoder, 8) == kv_bytes(full, 8)
    assert kv_bytes(full, 100) == 2 * 100 * 2 * 16 * 4 * 2  # k and v, heads, head_dim, f32, layers


@pytest.mark.parametrize(("options", "word"), [
    ({"compare": ("llama-cpp",)}, "supported: transformers"), ({"new_tokens": 1}, "--new-tokens"),
    ({"prompt_tokens": 0}, "--prompt-tokens"), ({"repeats": 0}, "--repeats"),
    ({"depth": -1}, "--depth")])
def test_options_that_make_no_sense(options, word):
    with pytest.raises(UserError, match=word):
        BenchOptions("demo", **options)


def test_command(command, tiny_model):
    done = command("bench", tiny_model("qwen3"), "--prompt-tokens", 5, "--new-tokens", 4,
                       "--repeats", 1, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["correctness"]["tokens_equal"] == 4


def test_command_refuses_an_unknown_baseline(command):
    done = command("bench", "demo", "--compare", "transformers,magic")
    assert done.returncode == 2
    assert done.stderr == "error: --compare magic is not supported; supported: transformers\n"


def test_provenance():
    assert versions()["numba"]
    found = commit()
    assert found is None or len(found.removesuffix("-dirty")) == 40
