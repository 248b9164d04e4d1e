"""The GPU worker's own source, run by Triton's interpreter: bodies, whole models, deadlocks.

The interpreter has to be chosen before triton is imported, so each part runs as a program of its
own: this file with `bodies FILE|model NAME|random SEED …|deadlock|suspended|trace`.
"""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from paths import PYTHONPATH, TESTS

pytest.importorskip("triton")

from random_models import random_model, unlikely_token
from suspension import notify_by_hand, output_of_stopping, stop_when_waiting

WORKERS = 4
SUSPENDED_S = 6
PROMPT, NEW_TOKENS = [5, 91, 17, 4, 250, 33], 3
CHUNK = 64  # of prefill
LONG_PROMPT = list(range(2, CHUNK + 8))  # more than one chunk
# head_dim 20 and 112 hidden columns: no block divides them
MODELS = {
    "llama": ("llama", {"num_hidden_layers": 1, "attention_bias": True, "mlp_bias": True,
                        "head_dim": 20}),
    "qwen2": ("qwen2", {"hidden_size": 112, "num_attention_heads": 7, "num_key_value_heads": 1,
                        "num_hidden_layers": 1}),
    "qwen3": ("qwen3", {"num_attention_heads": 8, "tie_word_embeddings": True,
                        "num_hidden_layers": 2}),
    "mistral": ("mistral", {"sliding_window": 4, "num_hidden_layers": 1}),
    "qwen3_moe": ("qwen3_moe", {"num_hidden_layers": 2, "norm_topk_prob": True}),
    "mixtral": ("mixtral", {"num_hidden_layers": 1}),
}
DENSE = ("llama", "qwen2", "qwen3", "mistral")
QUEUED = [("qwen3", "dynamic"), ("qwen3_moe", "dynamic"), ("qwen3_moe", "hybrid"),
          ("mixtral", "hybrid")]


def interpreted(*arguments, timeout=600, stopped_s=None):
    """Standard output of this file as a program, under the interpreter; on cores that others keep
    busy it takes several times as long. stopped_s: how long it stays stopped when it stops."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1",
                   "PYTHONPATH": PYTHONPATH}
    program = [sys.executable, __file__, *map(str, arguments)]
    if stopped_s is not None:
        return output_of_stopping(program, stopped_s, environment)
    ended = subprocess.run(program, env=environment, capture_output=True, text=True,
                           timeout=timeout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.parametrize("file", ["test_cpu_device_functions", "test_sampling_device",
                                  "test_logits_processors", "test_not_finite_bodies",
                                  "test_moe_device_functions", "test_mixed_formats",
                                  "test_function_parameters"])
def test_bodies_meet_the_references_of_the_cpu_bodies(file):
    print(interpreted("bodies", file).splitlines()[-1])


def test_what_a_device_is_tested_with_holds_for_the_cpu_bodies():
    """The tests of test_gpu_device.py call references by hand, on machines that few have."""
    import test_gpu_device as device

    device.test_bodies("bfloat16")
    device.test_moe_bodies("bfloat16")
    device.test_routing()
    device.test_sampling()


@pytest.mark.parametrize("name", DENSE)
def test_whole_models_choose_the_tokens_of_cpu_backend_and_transformers(name, tiny_model):
    family, fields = MODELS[name]
    directory = tiny_model(family, seed=len(name), **fields)
    prompt = LONG_PROMPT if name == "llama" else PROMPT
    result = json.loads(interpreted("model", directory, json.dumps(prompt)).splitlines()[-1])
    print(name, result["seconds"], "s")
    assert len(result["transformers"]) == NEW_TOKENS
    assert result["gpu"] == result["cpu"] == result["transformers"]


@pytest.mark.parametrize("name, schedule", QUEUED)
def test_queued_schedules_choose_the_same_tokens(name, schedule, tiny_model):
    family, fields = MODELS[name]
    directory = tiny_model(family, seed=len(name), **fields)
    result = json.loads(interpreted("model", directory, json.dumps(PROMPT), schedule)
                        .splitlines()[-1])
    print(name, schedule, result["seconds"], "s")
    assert len(result["transformers"]) == NEW_TOKENS
    assert result["gpu"] == result["cpu"] == result["transformers"]


@pytest.mark.parametrize("first", [5, 14])
def test_random_models_choose_the_tokens_of_transformers(first, tiny_model):
    seeds = range(first, first + 5)
    directories = [tiny_model(case.family, seed=seed, **case.fields | {"num_hidden_layers": 1})
                   for seed in seeds for case in [random_model(seed)]]
    print(interpreted("random", first, *directories))


@pytest.mark.parametrize("policy", ["static", "hybrid", "dynamic", "dynamic_early"])
def test_routed_tiles_run_once_and_integers_are_exact(policy):
    print(interpreted("routed", policy))


def test_a_missing_notify_ends_in_a_deadlock_error(tiny_model):
    directory = tiny_model("llama", num_hidden_layers=1)
    result = json.loads(interpreted("deadlock", directory).splitlines()[-1])
    assert "made no progress" in result["error"]
    assert f"waits on {result['event']}, count" in result["error"]


def test_a_missing_notify_of_a_queued_task_ends_in_a_deadlock_error(tiny_model):
    directory = tiny_model("llama", num_hidden_layers=1)
    result = json.loads(interpreted("deadlock", directory, "dynamic").splitlines()[-1])
    assert "made no progress" in result["error"]
    assert "queued tasks of" in result["error"]


def test_suspended_workers_have_not_waited(tiny_model):
    """Stopped for longer than the timeout and continued, they go on when the notify comes."""
    directory = tiny_model("llama", num_hidden_layers=1)
    output = interpreted("suspended", directory, stopped_s=SUSPENDED_S)
    assert output.splitlines()[-1] == "done"


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
def test_a_trace_has_every_task_once_and_tasks_of_a_worker_do_not_overlap(tiny_model, schedule):
    print(interpreted("trace", tiny_model("llama", num_hidden_layers=1), schedule))


# modules through which tests of bodies run them
SUPPORT = ("select_token", "body_references")


class GpuBodies:
    """Puts the GPU bodies in the place of the CPU bodies."""

    @pytest.fixture(autouse=True)
    def gpu_bodies(self, request, monkeypatch):
        from persistent_runtime.gpu.single_tile import run_tile

        for name in (request.module.__name__, *SUPPORT):
            if hasattr(sys.modules.get(name), "run_tile"):
                monkeypatch.setattr(sys.modules[name], "run_tile", run_tile)


def run_bodies(file):
    from persistent_runtime.gpu.interpret import patch_language_once

    patch_language_once()
    sys.exit(pytest.main([str(next(TESTS.rglob(f"{file}.py"))), "-q", "-x",
                          "-p", "no:cacheprovider"],
                         plugins=[GpuBodies()]))


def interpreted_decoder(directory, schedule="auto"):
    from frontend import compile as frontend_compile
    from frontend.graph import tiles
    from persistent_runtime.gpu.interpret import InterpretedBackend

    tiles.LINEAR_ROWS = CHUNK
    known = frontend_compile.find_backend
    frontend_compile.find_backend = lambda name: InterpretedBackend()
    try:
        return frontend_compile.compile_decode_loop(directory, dtype="float32", max_context=96,
                                                    workers=WORKERS, schedule=schedule)
    finally:
        frontend_compile.find_backend = known


def run_model(directory, prompt_json, schedule="auto"):
    import torch
    import transformers

    from frontend.compile import compile_decode_loop

    prompt = json.loads(prompt_json)
    decoder = interpreted_decoder(directory, schedule)
    begin = time.monotonic()
    gpu = decoder.generate(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True).output_ids
    seconds = time.monotonic() - begin
    cpu = compile_decode_loop(directory, backend="cpu", dtype="float32", max_context=96).generate(
        prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True).output_ids
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    tokens = model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
    print(json.dumps({"gpu": gpu, "cpu": cpu, "transformers": tokens[0, len(prompt):].tolist(),
                      "seconds": round(seconds, 1)}))


def run_random(first, *directories):
    import torch
    import transformers

    for seed, directory in enumerate(directories, int(first)):
        case, begin = random_model(seed), time.monotonic()
        prompt = min(case.prompts, key=len)[:40]
        decoder = interpreted_decoder(directory, case.schedule)
        output_ids = decoder.generate(prompt, max_new_tokens=NEW_TOKENS,
                                      ignore_eos=True).output_ids
        print(seed, case.family, case.schedule, f"{time.monotonic() - begin:.1f} s")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager",
            experts_implementation="eager")
        assert len(output_ids) == NEW_TOKENS
        assert unlikely_token(model, prompt, output_ids) is None, case


def step_without_a_notify(directory, schedule):
    """(kernel, segment, event) of one step whose embedding task does not notify that event: every
    other worker waits in vain."""
    from persistent_runtime.rows import layout

    decoder = interpreted_decoder(directory, schedule)
    kernel = decoder.kernel
    encoded = kernel.schedule(decoder.bindings(1, 1, 1))
    if schedule == "dynamic":
        action = next(a for a in encoded.edges.actions if a[layout.ACTION] == layout.NOTIFY)
        action[layout.ACTION], event = layout.CLEAR, action[layout.ACTION_EVENT]  # of no counter
    else:
        row = next(r for r in encoded.rows if r[layout.NOTIFY_END] > r[layout.NOTIFY_BEGIN])
        event = encoded.notifies[row[layout.NOTIFY_BEGIN]]
        row[layout.NOTIFY_END] = row[layout.NOTIFY_BEGIN]
    return kernel, kernel.segment(decoder.bindings(1, 1, 1), decoder._buffers), int(event)


def run_deadlock(directory, schedule="static"):
    from event_tensor.errors import DeadlockError

    kernel, segment, event = step_without_a_notify(directory, schedule)
    error = ""
    try:
        kernel.launch([segment], timeout_s=2.0).wait()
    except DeadlockError as raised:
        error = str(raised)
    print(json.dumps({"error": error,
                      "event": segment.encoded.schedule.table.event_name(event)}))


def run_suspended(directory):
    kernel, segment, event = step_without_a_notify(directory, "static")
    launch = kernel.launch([segment], timeout_s=SUSPENDED_S - 0.5)
    stop_when_waiting(launch, event, polling_s=1.0)
    notify_by_hand(launch, event)
    launch.wait()
    print("done")


def run_trace(directory, schedule="static"):
    decoder = interpreted_decoder(directory, schedule)
    decoder._launches.control.row_position[:3] = range(3)
    decoder._launches.control.finished[0] = 1
    segment = decoder.kernel.segment(decoder.bindings(1, 1, 3), decoder._buffers, steps=3,
                                     row_stride=1)
    launch = decoder.kernel.kernel.launch([segment], trace_steps=2)
    launch.wait()
    (trace,) = launch.trace()
    orders = segment.encoded.schedule.orders
    assert trace.worker.shape == (2, segment.encoded.schedule.table.num_tasks)
    for step in range(2):
        ran_by = [np.flatnonzero(trace.worker[step] == worker) for worker in range(WORKERS)]
        assert sum(map(len, ran_by)) == trace.worker.shape[1]
        for worker, order in enumerate(orders):
            if schedule == "dynamic":
                order = ran_by[worker][np.argsort(trace.end_us[step, ran_by[worker]])]
            assert (trace.worker[step, order] == worker).all()
            times = np.stack([trace.wait_us, trace.run_us, trace.end_us])[:, step, order]
            assert (np.diff(times.T.ravel()) >= 0).all()
    assert (trace.wait_us[1].min() >= trace.end_us[0].max())


def run_routed(policy):
    from moe_kernel_gpu import check_routings

    from persistent_runtime.gpu.interpret import InterpretedBackend

    check_routings(InterpretedBackend(), WORKERS, policy, steps=2)


if __name__ == "__main__":
    programs = {"bodies": run_bodies, "model": run_model, "deadlock": run_deadlock,
                "suspended": run_suspended, "trace": run_trace, "routed": run_routed,
                "random": run_random}
    programs[sys.argv[1]](*sys.argv[2:])
