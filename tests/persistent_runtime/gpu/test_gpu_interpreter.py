"""The GPU worker's own source, run by Triton's interpreter: bodies, whole models, deadlocks. The
programs are those of tests/support/interpreted.py."""

import json
import sys
from itertools import product

import pytest
from cases import OPTION, sampled
from fork_server import interpreter_environment
from paths import TESTS
from random_models import random_model
from suspension import output_of_stopping
from test_moe_schedules import routings

pytest.importorskip("triton")

SUSPENDED_S, NEW_TOKENS = 6, 3  # as in interpreted.py
PROMPT = [5, 91, 17, 4, 250, 33]
LONG_PROMPT = list(range(2, 64 + 8))  # more than one chunk of prefill
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
RANDOM_SEEDS = (6, 14, 15)  # experts, biases and ropes, heads of two numbers; short prompts


@pytest.mark.parametrize("file", ["test_cpu_device_functions", "test_sampling_device",
                                  "test_cpu_attention", "test_logits_processors",
                                  "test_not_finite_bodies", "test_moe_device_functions",
                                  "test_mixed_formats", "test_function_parameters"])
def test_bodies_meet_the_references_of_the_cpu_bodies(file, interpreted, request):
    options = [OPTION] if request.config.getoption(OPTION) else []
    print(interpreted("bodies", file, *options).splitlines()[-1])


def test_a_program_that_fails_is_a_failure(interpreted):
    with pytest.raises(AssertionError, match="StopIteration"):
        interpreted("bodies", "no_such_file")


def test_what_a_device_is_tested_with_holds_for_the_cpu_bodies():
    """The tests of test_gpu_device.py call references by hand, on machines that few have."""
    import test_gpu_device as device

    device.test_bodies("bfloat16")
    device.test_moe_bodies("bfloat16")
    device.test_routing()
    device.test_sampling()


@pytest.mark.parametrize("name", DENSE)
def test_whole_models_choose_the_tokens_of_cpu_backend_and_transformers(name, tiny_model,
                                                                         interpreted):
    family, fields = MODELS[name]
    directory = tiny_model(family, seed=len(name), **fields)
    prompt = LONG_PROMPT if name == "llama" else PROMPT
    result = json.loads(interpreted("model", directory, json.dumps(prompt)).splitlines()[-1])
    print(name, result["seconds"], "s")
    assert len(result["transformers"]) == NEW_TOKENS
    assert result["gpu"] == result["cpu"] == result["transformers"]


@pytest.mark.parametrize("name, schedule", sampled(
    [("qwen3", "dynamic"), ("qwen3_moe", "dynamic"), ("qwen3_moe", "hybrid"),
     ("mixtral", "hybrid")],
    [("qwen3", "dynamic"), ("qwen3_moe", "hybrid"), ("mixtral", "hybrid")]))
def test_queued_schedules_choose_the_same_tokens(name, schedule, tiny_model, interpreted):
    family, fields = MODELS[name]
    directory = tiny_model(family, seed=len(name), **fields)
    result = json.loads(interpreted("model", directory, json.dumps(PROMPT), schedule)
                        .splitlines()[-1])
    print(name, schedule, result["seconds"], "s")
    assert len(result["transformers"]) == NEW_TOKENS
    assert result["gpu"] == result["cpu"] == result["transformers"]


@pytest.mark.parametrize("seed", sampled([*range(5, 10), *range(14, 19)], RANDOM_SEEDS))
def test_random_models_choose_the_tokens_of_transformers(seed, tiny_model, interpreted):
    case = random_model(seed)
    directory = tiny_model(case.family, seed=seed, **case.fields | {"num_hidden_layers": 1})
    print(interpreted("random", seed, directory))


# every routing in some queue, and every policy
ROUTED = [("static", "empty-experts"), ("hybrid", "random"), ("hybrid", "one-token"),
          ("dynamic", "one-expert-gets-all"), ("dynamic_early", "all-used"),
          ("dynamic", "empty-experts")]


@pytest.mark.parametrize("policy, routing", sampled(
    product(["static", "hybrid", "dynamic", "dynamic_early"], routings()), ROUTED))
def test_routed_tiles_run_once_and_integers_are_exact(policy, routing, interpreted):
    print(interpreted("routed", policy, routing))


def test_a_missing_notify_ends_in_a_deadlock_error(tiny_model, interpreted):
    directory = tiny_model("llama", num_hidden_layers=1)
    result = json.loads(interpreted("deadlock", directory).splitlines()[-1])
    assert "made no progress" in result["error"]
    assert f"waits on {result['event']}, count" in result["error"]


def test_a_missing_notify_of_a_queued_task_ends_in_a_deadlock_error(tiny_model, interpreted):
    directory = tiny_model("llama", num_hidden_layers=1)
    result = json.loads(interpreted("deadlock", directory, "dynamic").splitlines()[-1])
    assert "made no progress" in result["error"]
    assert "queued tasks of" in result["error"]


def test_suspended_workers_have_not_waited(tiny_model):
    """Stopped for longer than the timeout and continued, they go on when the notify comes."""
    directory = tiny_model("llama", num_hidden_layers=1)
    program = [sys.executable, TESTS / "support" / "interpreted.py", "suspended", directory]
    output = output_of_stopping(program, SUSPENDED_S, interpreter_environment())
    assert output.splitlines()[-1] == "done"


@pytest.mark.parametrize("schedule", ["static", "dynamic"])
def test_a_trace_has_every_task_once_and_tasks_of_a_worker_do_not_overlap(
        tiny_model, schedule, interpreted):
    print(interpreted("trace", tiny_model("llama", num_hidden_layers=1), schedule))
