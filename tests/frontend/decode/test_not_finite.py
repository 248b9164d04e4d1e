"""Logits that are NaN or infinite end a generation with an error that names the step and the cause,
as far as the weights show it; nothing is lost that came before."""

import json
from functools import cache

import numpy as np
import pytest
import torch
import transformers

from event_tensor.errors import NotFiniteError
from frontend.compile import compile_decode_loop
from frontend.decode.not_finite import count_not_finite
from frontend.report.console import print_json

VOCAB = 64
PROMPT = [5, 9, 17]


def llama(dtype=torch.float32):
    torch.manual_seed(2)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=VOCAB, max_position_embeddings=128,
        initializer_range=0.3, eos_token_id=None)).to(dtype).eval()


def poisoned(name, value=float("nan"), at=(3,), dtype=torch.float32):
    model = llama(dtype)
    with torch.no_grad():
        model.state_dict()[name].view(-1)[list(at)] = value
    return model


@cache
def greedy_tokens():
    return compile_decode_loop(llama()).generate(PROMPT, max_new_tokens=20).output_ids


@pytest.mark.parametrize("name", [
    "lm_head.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight",
    "model.layers.0.self_attn.k_proj.weight", "model.layers.1.input_layernorm.weight"])
@pytest.mark.parametrize("value, counts", [
    (float("nan"), "1 NaN and 0 infinite"), (float("inf"), "0 NaN and 1 infinite")])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.8, "top_p": 0.9, "seed": 1}])
def test_a_damaged_weight_is_named(name, value, counts, options):
    decoder = compile_decode_loop(poisoned(name, value))
    for _ in range(2):  # and again: nothing is left behind
        with pytest.raises(NotFiniteError) as caught:
            decoder.generate(PROMPT, max_new_tokens=8, **options)
        message = str(caught.value)
        assert f"the weight {name} holds {counts} values in float32" in message
        assert "new token 1 (decode step 0)" in message


def test_the_step_is_that_of_the_first_token_without_numbers():
    """The embedding of a token that the model chooses is no number: the next logits are none."""
    tokens = greedy_tokens()
    step = next(k for k in range(3, 20) if tokens[k] not in (*PROMPT, *tokens[:k]))
    decoder = compile_decode_loop(
        poisoned("model.embed_tokens.weight", at=[32 * tokens[step] + 1]))
    seen = []
    with pytest.raises(NotFiniteError, match=rf"new token {step + 2} \(decode step {step + 1}\)"):
        for token in decoder.stream(PROMPT, max_new_tokens=20):
            seen.append(token.id)
    assert seen == tokens[:step + 1]


def test_in_a_batch_the_prompt_is_named_and_the_others_end():
    good = greedy_tokens()
    bad = next(token for token in range(VOCAB) if token not in (*PROMPT, *good))
    decoder = compile_decode_loop(poisoned("model.embed_tokens.weight", at=[32 * bad]))
    with pytest.raises(NotFiniteError, match="of prompt 1 for new token 1 "):
        decoder.generate([PROMPT, [4, bad], PROMPT], max_new_tokens=20)
    assert decoder.generate(PROMPT, max_new_tokens=20).output_ids == good
    # the cache of a request that failed is not gone on from
    with pytest.raises(NotFiniteError):
        list(decoder.stream([PROMPT[0], bad, 3], max_new_tokens=2, keep_cache=True))
    assert [t.id for t in decoder.stream(PROMPT, max_new_tokens=20, keep_cache=True)] == good


def test_a_weight_that_float16_cannot_hold_is_named():
    model = poisoned("model.layers.0.mlp.up_proj.weight", 1e6, dtype=torch.bfloat16)
    assert compile_decode_loop(model).generate(PROMPT, max_new_tokens=2).output_ids
    with pytest.raises(NotFiniteError, match="up_proj.weight holds 0 NaN and 1 infinite values in "
                                             "float16: use --dtype bfloat16 or float32"):
        compile_decode_loop(model, dtype="float16").generate(PROMPT, max_new_tokens=2)


def test_a_key_beyond_float16_is_suspected_where_all_weights_are_finite():
    model = llama(torch.bfloat16)
    with torch.no_grad():
        model.model.layers[0].self_attn.k_proj.weight *= 60_000
    with pytest.raises(NotFiniteError, match="all weights are finite, so a key or value"):
        compile_decode_loop(model, dtype="float16").generate(PROMPT, max_new_tokens=4)


@pytest.mark.parametrize("dtype, storage", [("float32", np.float32), ("float16", np.float16),
                                            ("bfloat16", None)])
def test_what_is_no_number_is_counted_by_its_bits(dtype, storage):
    values = np.random.default_rng(0).normal(0, 1, 1000).astype(np.float32)
    values[[3, 500]], values[[7, 8, 999]] = np.nan, [np.inf, -np.inf, np.inf]
    bits = ((values.view(np.uint32) >> 16).astype(np.uint16) if storage is None
            else values.astype(storage))
    assert count_not_finite(bits, dtype) == (2, 3)


def test_the_command_ends_with_a_sentence(command, tmp_path):
    poisoned("lm_head.weight").save_pretrained(tmp_path)
    for more in ((), ("--json",)):
        ended = command("generate", tmp_path, "--prompt-ids", "5,9", *more)
        assert ended.returncode == 2
        assert "error: the logits for new token 1" in ended.stderr
        assert not ended.stdout.strip() and "Traceback" not in ended.stderr


def test_json_has_null_where_there_is_no_finite_number(capsys):
    print_json({"a": float("nan"), "b": [1.5, float("-inf"), (2, float("inf"))], "c": "NaN"})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1.5, None, [2, None]],
                                                   "c": "NaN"}
