"""The command line: JSON contract, streaming, exit codes, one-sentence errors, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import COMMAND, HANG_S, command_environment, wait_until

from frontend.report.console import ProgressBar
from persistent_runtime.cpu.compile.disk_cache import FUNCTIONS

PROMPT = ("--prompt", "kernel:")


def test_help_needs_no_heavy_library():
    done = subprocess.run(
        [COMMAND[0], "-X", "importtime", *COMMAND[1:], "--help"], capture_output=True, text=True,
        env=command_environment(), timeout=HANG_S)
    assert done.returncode == 0
    assert "generate" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "typer" in imported
    assert not imported & {"torch", "numba", "numpy", "transformers", "rich", "networkx"}


@pytest.mark.parametrize("name", ["generate", "inspect", "doctor", "bench", "trace", "warmup",
                                  "cache"])
def test_every_command_explains_itself(command, name):
    done = command(name, "--help")
    assert done.returncode == 0
    assert "--json" in done.stdout


def test_json_contract_of_generate(run_command):
    done = run_command("generate", "demo", *PROMPT, "--max-new-tokens", 12, "--json",
                       "--ignore-eos", "--workers", 1)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert set(record) == {
        "prompt_ids", "output_ids", "text", "ttft_ms", "tpot_ms", "tokens_per_second", "backend",
        "schedule", "workers", "launches", "compilations", "finish_reason", "sampling"}
    assert len(record["output_ids"]) == 12
    assert isinstance(record["text"], str)
    assert set(record["tpot_ms"]) == {"p50", "p90", "p99"}
    assert (record["backend"], record["schedule"], record["workers"]) == ("cpu", "static", 1)
    assert (record["launches"], record["compilations"]) == (1, 1)
    assert done.stderr == ""


def test_streamed_text_is_the_text_of_the_json(command):
    arguments = ("generate", "demo", *PROMPT, "--max-new-tokens", 40)
    streamed, recorded = command(*arguments), command(*arguments, "--json")
    assert streamed.stdout == json.loads(recorded.stdout)["text"] + "\n"
    summary = streamed.stderr.strip()
    assert "\n" not in summary
    for word in ("TTFT", "TPOT p50", "tok/s", "cpu backend", " schedule,", "workers"):
        assert word in summary


def test_ids_need_no_tokenizer(command, tiny_model):
    arguments = ("generate", tiny_model("qwen3"), "--prompt-ids", "1, 2,3", "--max-new-tokens", 6,
                 "--ignore-eos")
    record = json.loads(command(*arguments, "--json").stdout)
    assert record["prompt_ids"] == [1, 2, 3]
    assert record["text"] is None
    assert command(*arguments).stdout.split() == [str(i) for i in record["output_ids"]]


def test_one_new_token_has_no_time_between_tokens(command, tiny_model):
    done = command("generate", tiny_model("qwen3"), "--prompt-ids", "1", "--max-new-tokens", 1,
                       "--json")
    assert json.loads(done.stdout)["tpot_ms"] is None


@pytest.mark.parametrize("schedule", ["static", "dynamic", "dynamic_early", "unfused",
                                      "round_robin"])
def test_schedules_by_name(command, tiny_model, schedule):
    done = command("generate", tiny_model("qwen3"), "--prompt-ids", "1,2", "--max-new-tokens",
                       3, "--schedule", schedule, "--json")
    assert json.loads(done.stdout)["schedule"] == schedule


@pytest.mark.parametrize(("arguments", "words"), [
    (("no/such/directory", *PROMPT), ["no/such/directory", "directory"]),
    (("demo", "--prompt-ids", "1,two"), ["--prompt-ids", "integers"]),
    (("demo", "--prompt-ids", ""), ["--prompt-ids", "integers"]),
    (("demo", "--prompt-ids", "1,99999999"), ["99999999", "vocabulary"]),
    (("demo", "--prompt-ids", "-1"), ["-1", "vocabulary"]),
    (("demo", "--prompt", ""), ["prompt is empty"]),
    (("demo", *PROMPT, "--max-context", "16", "--max-new-tokens", "64"), ["max_context 16"]),
    (("demo", *PROMPT, "--max-new-tokens", "0"), ["max_new_tokens", "at least 1"]),
    (("demo", *PROMPT, "--workers", "0"), ["workers", "at least 1"]),
    (("demo", *PROMPT, "--schedule", "magic"), ["magic", "static"]),
    (("demo", *PROMPT, "--backend", "cuda"), ["cuda", "cpu"]),
    (("demo", *PROMPT, "--dtype", "int3"), ["int3", "bfloat16"]),
    (("demo", *PROMPT, "--temperature", "-0.7"), ["temperature is -0.7", "greedy"]),
    (("demo", *PROMPT, "--top-p", "1.5"), ["top_p is 1.5", "to 1"]),
    (("demo", *PROMPT, "--stop", ""), ["stop strings", "empty"]),
    (("demo", *PROMPT, "--prompt-ids", "1"), ["either --prompt"]),
    (("demo",), ["either --prompt"]),
])
def test_mistakes_are_answered_in_one_line(command, arguments, words):
    done = command("generate", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_a_mistake_in_a_process_of_its_own(run_command):
    done = run_command("generate", "demo", *PROMPT, "--schedule", "magic")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_unknown_options_are_refused(command):
    done = command("generate", "demo", *PROMPT, "--no-such-option")
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr


def test_temperature_zero_is_greedy(command):
    done = command("generate", "demo", *PROMPT, "--max-new-tokens", 2, "--temperature", 0)
    assert done.returncode == 0


def test_a_terminal_without_utf8_is_no_reason_to_fail(run_command):
    done = run_command("generate", "demo", "--prompt", "naïve —", "--max-new-tokens", 8,
                       PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


def start_generation(directory, *arguments):
    """A generation of thousands of tokens, returned once its first token is out."""
    process = subprocess.Popen(
        [*COMMAND, "generate", str(directory), "--prompt-ids", "1,2,3", "--ignore-eos",
         "--max-new-tokens", "60000", "--max-context", "65536", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=command_environment())
    first = os.read(process.stdout.fileno(), 64)
    assert first, process.stderr.read().decode()
    return process, first


def test_interrupt_ends_a_generation(tiny_model):
    directory = tiny_model("llama", max_position_embeddings=65536)
    process, text = start_generation(directory)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    assert errors == b""
    assert (text + rest).endswith(b"\n")
    assert 0 < len((text + rest).split()) < 60000


def is_importing(process, cache):
    return "numpy" in Path(f"/proc/{process.pid}/maps").read_text()


def is_compiling(process, cache):
    """The first of many functions is there."""
    return any(cache.rglob(f"*{FUNCTIONS.suffix}"))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("has_come_to", [is_importing, is_compiling])
def test_interrupt_ends_the_start(has_come_to, tmp_path):
    """Amid the imports, and amid compiling, with a cache that has nothing."""
    process = subprocess.Popen([*COMMAND, "generate", "demo", *PROMPT], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE,
                               env=command_environment(EVENT_TENSOR_CACHE=str(tmp_path)))
    wait_until(lambda: process.poll() is not None or has_come_to(process, tmp_path))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_a_closed_pipe_is_quiet(tiny_model):
    process, _ = start_generation(tiny_model("llama", max_position_embeddings=65536))
    process.stdout.close()
    assert process.wait(timeout=HANG_S) != 0
    assert process.stderr.read() == b""


def test_progress_shows_only_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("frontend.report.console.SILENT_S", 0.0)
    for watched in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda watched=watched: watched, raising=False)
        with ProgressBar() as progress:
            for done in range(3):
                progress("compiling", done + 1, 3)
        shown = capsys.readouterr()
        assert shown.out == ""
        assert ("compiling" in shown.err) == watched


@pytest.mark.parametrize("what", ["graph", "schedule", "kernel"])
def test_inspect(command, tiny_model, what):
    arguments = ("inspect", tiny_model("qwen3"), "--what", what, "--workers", 2)
    shown, recorded = command(*arguments), command(*arguments, "--json")
    assert shown.returncode == 0, shown.stderr
    record = json.loads(recorded.stdout)
    assert record["what"] == what
    if what == "graph":
        assert shown.stdout.startswith(record["text"])
        assert "layers.*.mlp" in shown.stdout
        assert "graph decode_step(" in record["text"]
        assert "notify E_model.layers.0.mlp.down_proj" in record["text"]
    elif what == "schedule":
        assert sum(worker["tasks"] for worker in record["workers"]) == record["tasks"]
        assert sum(worker["waits"] for worker in record["workers"]) == record["waits"]
        assert record["waits"] < record["waits_before_pruning"]
        assert "auto" in shown.stdout
    else:
        assert {"attention", "norm_linear", "run_worker"} <= {
            function["name"] for function in record["functions"]}
        assert record["memory_bytes"]["weight"] > 0
        assert "norm_linear" in shown.stdout


def test_inspect_refuses_an_unknown_view(command):
    done = command("inspect", "demo", "--what", "soul")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --what soul")


def test_doctor_finds_this_machine_fit(command):
    done = command("doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(done.stdout)
    assert record["passed"]
    assert {check["name"] for check in record["checks"]} == {"kernel cache", "generation"}
    assert record["versions"]["torch"]
    assert record["cpu"]["cores"] >= 1
