"""Greedy tokens equal transformers' in float32, for every family and for awkward shapes.

Weights are drawn wide (norms and biases too), so that logits lie far apart and a wrong bias, norm,
window or rope changes the tokens: `test_the_comparison_can_fail` shows that each of them does.
"""

from functools import cache

import numpy as np
import pytest
import torch
import transformers

from frontend.compile import compile_decode_loop
from persistent_runtime.cache.compilations import COMPILATIONS

NEW_TOKENS = 64
LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
               "rope_theta": 10_000.0}
MODELS = {
    "llama": ("llama", {"num_key_value_heads": 4, "num_hidden_layers": 1, "vocab_size": 1009}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 20}),
    "llama3-rope": ("llama", {"num_attention_heads": 8, "rope_parameters": LLAMA3_ROPE}),
    "qwen2": ("qwen2", {"hidden_size": 112, "num_attention_heads": 7, "num_key_value_heads": 1}),
    "qwen3": ("qwen3", {"num_attention_heads": 8, "head_dim": 24, "tie_word_embeddings": True}),
    "qwen3-deep": ("qwen3", {"num_hidden_layers": 12, "vocab_size": 1009}),
    "mistral": ("mistral", {"num_attention_heads": 8, "head_dim": 16, "sliding_window": 20}),
}
# model, prompt tokens, workers, schedule
CASES = [
    ("llama", 1, 1, "static"), ("llama", 300, 5, "round_robin"), ("llama-biases", 31, 2, "unfused"),
    ("llama-biases", 1, 5, "static"), ("llama3-rope", 300, 2, "static"),
    ("llama3-rope", 31, 1, "unfused"), ("qwen2", 1, 2, "round_robin"), ("qwen2", 31, 5, "static"),
    ("qwen2", 300, 1, "static"), ("qwen3", 31, 2, "static"), ("qwen3", 300, 5, "unfused"),
    ("qwen3-deep", 31, 2, "static"), ("qwen3-deep", 1, 1, "round_robin"),
    ("mistral", 31, 2, "static"), ("mistral", 300, 1, "round_robin"), ("mistral", 1, 5, "unfused"),
    ("llama", 31, 5, "dynamic"), ("qwen2", 300, 1, "dynamic"), ("qwen3-deep", 31, 2, "dynamic"),
    ("mistral", 1, 2, "hybrid"), ("qwen3", 31, 5, "dynamic_early"),
]


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
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory(name, dtype), dtype=getattr(torch, run_in or dtype),
            attn_implementation="eager")
        return model.eval()

    return load


@pytest.fixture(scope="module")
def decoder(directory):
    """`decoder(name, workers, schedule)`, compiled once for each."""

    @cache
    def make(name, workers, schedule):
        return compile_decode_loop(directory(name), workers=workers, schedule=schedule)

    return make


def prompt_ids(model, count, seed=0):
    return np.random.default_rng(count + seed).integers(0, model.config.vocab_size, count).tolist()


@torch.no_grad()
def greedy(model, prompt, eos=None, new_tokens=NEW_TOKENS):
    """transformers' greedy continuation; `eos`: ids that end it, None to go on regardless."""
    config = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=new_tokens, eos_token_id=eos, pad_token_id=0)
    ids = torch.tensor([prompt])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config,
                            **({"eos_token_id": -1} if eos is None else {}))
    return output[0, len(prompt):].tolist()


@torch.no_grad()
def forced_logits(model, ids):
    return model(torch.tensor([ids])).logits[0].float().numpy()


@pytest.mark.parametrize("name, prompt_tokens, workers, schedule", CASES)
def test_tokens_equal(decoder, reference, name, prompt_tokens, workers, schedule):
    model = reference(name)
    prompt = prompt_ids(model, prompt_tokens)
    expected = greedy(model, prompt)
    assert len(expected) == NEW_TOKENS
    result = decoder(name, workers, schedule).generate(
        prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    assert result.output_ids == expected
    assert result.prompt_ids == prompt and result.launches == 1


@pytest.mark.parametrize("name", ["llama-biases", "qwen2", "qwen3", "mistral"])
def test_end_tokens_end_it_and_are_kept(reference, name):
    """A loaded model, whose end tokens we choose among what it says."""
    model = reference(name)
    prompt = prompt_ids(model, 17)
    free = greedy(model, prompt)
    eos = [free[40], free[9]]
    before = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = eos
        decoder = compile_decode_loop(model, workers=2)
    finally:
        model.generation_config.eos_token_id = before
    expected = greedy(model, prompt, eos)
    assert len(expected) <= 10 and expected[-1] in eos
    assert decoder.generate(prompt, max_new_tokens=NEW_TOKENS).output_ids == expected
    assert decoder.generate(
        prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True).output_ids == free


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_close(decoder, reference, name):
    workers, schedule = next((w, s) for n, _, w, s in CASES if n == name)
    model = reference(name)
    ids = prompt_ids(model, 75)
    expected = forced_logits(model, ids)
    logits = decoder(name, workers, schedule).logits(ids)
    assert logits.shape == expected.shape
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama", "llama3-rope", "qwen2", "qwen3-deep", "mistral"])
def test_narrow_types_are_no_worse_than_transformers(directory, reference, name, dtype):
    """Largest logit error against the same weights in float32, ours and transformers' own."""
    exact = reference(name, dtype, "float32")
    ids = prompt_ids(exact, 48)
    expected = forced_logits(exact, ids)
    theirs = np.abs(forced_logits(reference(name, dtype), ids) - expected).max()
    decoder = compile_decode_loop(directory(name, dtype), workers=2)
    assert decoder.dtype == dtype
    # the first tokens in steps of few rows, as in decode; or of many, as in prefill
    for last in (len(ids), len(ids) // 2):
        ours = np.abs(decoder.logits(ids, last=last) - expected[-last:]).max()
        assert 0 < ours <= 1.5 * theirs, f"{ours} against {theirs} of transformers"


def test_one_compilation_for_every_length(directory, reference, tiny_model):
    path = tiny_model("qwen3", seed=3, max_position_embeddings=1024)
    decoder = compile_decode_loop(path, workers=2)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager")
    compiled = len(COMPILATIONS)
    for count in (5, 50, 500):
        prompt = prompt_ids(model, count)
        result = decoder.generate(prompt, max_new_tokens=16, ignore_eos=True)
        assert result.output_ids == greedy(model, prompt, new_tokens=16)
    assert decoder.compilations == 1
    assert len(COMPILATIONS) == compiled


DAMAGE = {
    "no window": ("mistral", lambda name: False, {"sliding_window": None}),
    "a larger window": ("mistral", lambda name: False, {"sliding_window": 21}),
    "no rope scaling": ("llama3-rope", lambda name: False, {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}),
    "no query bias": ("qwen2", lambda name: name.endswith("q_proj.bias"), {}),
    "no value bias": ("qwen2", lambda name: name.endswith("v_proj.bias"), {}),
    "no output bias": ("llama-biases", lambda name: name.endswith("o_proj.bias"), {}),
    "no gate bias": ("llama-biases", lambda name: name.endswith("gate_proj.bias"), {}),
    "no down bias": ("llama-biases", lambda name: name.endswith("down_proj.bias"), {}),
    "no head norm": ("qwen3", lambda name: name.endswith("k_norm.weight"), {}),
    "no input norm": ("llama", lambda name: name.endswith("input_layernorm.weight"), {}),
    "no final norm": ("llama", lambda name: name == "model.norm.weight", {}),
}


@pytest.mark.parametrize("damage", DAMAGE)
@torch.no_grad()
def test_the_comparison_can_fail(directory, reference, damage):
    """A model that lacks one detail says something else."""
    name, is_lost, fields = DAMAGE[damage]
    config = transformers.AutoConfig.from_pretrained(directory(name))
    for key, value in fields.items():
        setattr(config, key, value)
    damaged = transformers.AutoModelForCausalLM.from_pretrained(
        directory(name), config=config, attn_implementation="eager")
    for key, parameter in damaged.named_parameters():
        if is_lost(key):
            parameter.fill_(1.0 if key.endswith("norm.weight") else 0.0)
    prompt = prompt_ids(damaged, 31)
    assert greedy(damaged, prompt) != greedy(reference(name), prompt)
