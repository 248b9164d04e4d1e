"""Greedy tokens of mixture-of-experts models equal transformers' in float32, however scheduled.

Weights are drawn wide, so that routers tell their experts apart and a wrong expert, weight or row
changes the tokens: `test_the_comparison_can_fail` shows that each of them does.
"""

import json
from functools import cache

import numpy as np
import pytest
import torch
import transformers
from test_exact_tokens import forced_logits, greedy, prompt_ids

from frontend.compile import compile_decode_loop
from frontend.model_files.resolve import DEMO_MODELS

NEW_TOKENS = 48
MODELS = {
    "qwen3_moe": ("qwen3_moe", {}),
    "qwen3_moe-normed": ("qwen3_moe", {
        "norm_topk_prob": True, "num_experts": 9, "num_experts_per_tok": 4,
        "tie_word_embeddings": True}),
    "qwen3_moe-mixed": ("qwen3_moe", {  # layers 1 and 5 are sparse
        "num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3],
        "attention_bias": True, "norm_topk_prob": True}),
    "qwen3_moe-one": ("qwen3_moe", {"num_experts_per_tok": 1, "use_sliding_window": True,
                                    "sliding_window": 20}),
    "qwen3_moe-all": ("qwen3_moe", {"num_experts": 3, "num_experts_per_tok": 3}),
    "mixtral": ("mixtral", {"num_local_experts": 8}),
    "mixtral-window": ("mixtral", {"sliding_window": 20, "num_hidden_layers": 3}),
}
PROMPTS, WORKERS = (1, 31, 100), (1, 2, 5)
SCHEDULES = ("static", "dynamic", "hybrid", "unfused")
# every model meets every prompt length; workers and schedules go round, so that all pairs occur
CASES = [(name, PROMPTS[p], WORKERS[(m + p) % 3], SCHEDULES[(m + 2 * p + p // 2) % 4])
         for m, name in enumerate(MODELS) for p in range(3)]


@pytest.fixture(scope="module")
def directory(tiny_model):
    """`directory(name, dtype)` of one of MODELS."""

    def make(name, dtype="float32"):
        family, fields = MODELS[name]
        return tiny_model(family, dtype=dtype, seed=len(name), **fields)

    return make


@pytest.fixture(scope="module")
def reference(directory):
    """`reference(name, dtype, run_in)`: the transformers model, its weights as stored."""

    @cache
    def load(name, dtype="float32", run_in=None):
        return load_reference(directory(name, dtype), dtype=getattr(torch, run_in or dtype))

    return load


def load_reference(path, **options):
    """Experts one after another: the definition, and the same sums on every machine."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path, attn_implementation="eager", experts_implementation="eager", **options)
    return model.eval()


@pytest.fixture(scope="module")
def decoder(directory):
    """`decoder(name, workers, schedule)`, compiled once for each."""

    @cache
    def make(name, workers, schedule):
        return compile_decode_loop(directory(name), workers=workers, schedule=schedule)

    return make


@pytest.mark.parametrize("name, prompt_tokens, workers, schedule", CASES)
def test_tokens_equal(decoder, reference, name, prompt_tokens, workers, schedule):
    model = reference(name)
    prompt = prompt_ids(model, prompt_tokens)
    result = decoder(name, workers, schedule).generate(
        prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    assert result.output_ids == greedy(model, prompt, new_tokens=NEW_TOKENS)
    assert result.launches == 1


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_close(decoder, reference, name):
    workers, schedule = next((w, s) for n, _, w, s in CASES if n == name)
    model = reference(name)
    ids = prompt_ids(model, 75)
    expected = forced_logits(model, ids)
    logits = decoder(name, workers, schedule).logits(ids)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["qwen3_moe-normed", "mixtral"])
def test_a_loaded_model_says_the_same(decoder, reference, name):
    """Its experts are packed already; those of the directory are stored one by one."""
    model = reference(name)
    prompt = prompt_ids(model, 17)
    loaded = compile_decode_loop(model, workers=2)
    workers, schedule = next((w, s) for n, _, w, s in CASES if n == name)
    assert loaded.generate(prompt, max_new_tokens=16, ignore_eos=True).output_ids == decoder(
        name, workers, schedule).generate(prompt, max_new_tokens=16, ignore_eos=True).output_ids


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["qwen3_moe-all", "mixtral"])
def test_narrow_types_are_no_worse_than_transformers(directory, reference, name, dtype):
    """Median logit error against the same weights in float32, ours and transformers' own.

    A rounded router may choose another expert for a row, which no tolerance covers: the median
    over rows does not see the few rows where that happens.
    """
    exact = reference(name, dtype, "float32")
    ids = prompt_ids(exact, 48)
    expected = forced_logits(exact, ids)
    theirs = np.abs(forced_logits(reference(name, dtype), ids) - expected).max(axis=1)
    decoder = compile_decode_loop(directory(name, dtype), workers=2)
    assert decoder.dtype == dtype
    ours = np.abs(decoder.logits(ids) - expected).max(axis=1)
    assert 0 < np.median(ours) <= 1.5 * np.median(theirs)


def test_one_compilation_for_every_routing_and_length(directory, reference):
    decoder = compile_decode_loop(directory("qwen3_moe"), workers=2)
    model = reference("qwen3_moe")
    for count in (5, 64, 130):
        prompt = prompt_ids(model, count)
        result = decoder.generate(prompt, max_new_tokens=8, ignore_eos=True)
        assert result.output_ids == greedy(model, prompt, new_tokens=8)
    assert decoder.compilations == 1


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_demo_model_says_what_transformers_says(schedule):
    path = DEMO_MODELS["demo-moe"]
    decoder = compile_decode_loop("demo-moe", dtype="float32", workers=2, schedule=schedule)
    model = load_reference(path, dtype=torch.float32)
    prompt = decoder.tokenizer.encode("hacker:")
    result = decoder.generate(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    assert result.output_ids == greedy(model, prompt, new_tokens=NEW_TOKENS)


def swap_halves(weight):
    """Gate and up change places."""
    weight.copy_(weight.roll(weight.shape[1] // 2, 1))


def next_expert(weight):
    weight.copy_(weight.roll(1, 0))


DAMAGE = {
    "experts change places": ("qwen3_moe", {}, "experts.down_proj", next_expert),
    "gate and up change places": ("mixtral", {}, "experts.gate_up_proj", swap_halves),
    "the router's rows change places": ("mixtral", {}, "mlp.gate.weight", next_expert),
    "one expert less": ("qwen3_moe", {"num_experts_per_tok": 1}, None, None),
    "weights not normalised": ("qwen3_moe-normed", {"norm_topk_prob": False}, None, None),
    "weights normalised": ("qwen3_moe", {"norm_topk_prob": True}, None, None),
    "no window": ("mixtral-window", {"sliding_window": None}, None, None),
}


@pytest.mark.parametrize("damage", DAMAGE)
@torch.no_grad()
def test_the_comparison_can_fail(directory, reference, damage):
    """A model with one detail changed says something else."""
    name, fields, ending, change = DAMAGE[damage]
    config = transformers.AutoConfig.from_pretrained(directory(name))
    for key, value in fields.items():
        setattr(config, key, value)
    damaged = load_reference(directory(name), config=config)
    for key, parameter in damaged.named_parameters():
        if ending and key.endswith(ending):
            change(parameter)
    prompt = prompt_ids(damaged, 31)
    assert greedy(damaged, prompt) != greedy(reference(name), prompt)


def test_inspection_shows_the_experts(command):
    shown = command("inspect", "demo-moe", "--what", "kernel", "--workers", 2)
    assert shown.returncode == 0, shown.stderr
    assert "experts per token" in shown.stdout and "experts: gate_up" in shown.stdout
    record = json.loads(command(
        "inspect", "demo-moe", "--what", "kernel", "--workers", 2, "--json").stdout)
    assert record["experts"] == {"experts": 8, "experts_per_token": 2, "sparse_layers": 3,
                                 "layers": 4, "intermediate_size": 96}
    assert record["weight_bytes_of_a_step"] == 782_720 * 2
    graph = command("inspect", "demo-moe", "--what", "graph", "--workers", 2).stdout
    assert "trigger E_model.layers.1.mlp.expert by e -> " in graph
