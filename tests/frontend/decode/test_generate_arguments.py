"""Whatever `model.generate` is asked besides custom_generate is read, harmless, or refused."""

import logging
import warnings

import pytest
import torch
import transformers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers.generation import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop
from frontend.decode.bridge import generate_with
from frontend.decode.generate_arguments import arguments_of, refuse_arguments, refuse_config

PROMPT = torch.tensor([[5, 91, 17, 4, 250, 33]])
EMBEDS = torch.zeros(1, 6, 64)


def make_model():
    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=301, max_position_embeddings=512, eos_token_id=7,
        pad_token_id=0, initializer_range=0.2)).eval()


@pytest.fixture(scope="module")
def tiny():
    return make_model()


@pytest.fixture(scope="module")
def decoder(tiny):
    return compile_decode_loop(tiny)


def filled_cache(model):
    cache = transformers.DynamicCache(config=model.config)
    model(PROMPT[:, :3], cache=cache)
    return cache


REFUSED = {  # an argument of generate → its value
    "inputs_embeds": lambda model: EMBEDS, "cache": filled_cache, "past_key_values": filled_cache,
    "penalty_alpha": lambda model: 0.6, "assistant_model": lambda model: make_model(),
    "prompt_lookup_num_tokens": lambda model: 3, "dola_layers": lambda model: "high",
    "prefix_allowed_tokens_fn": lambda model: lambda batch, ids: [1, 2],
    "output_scores": lambda model: True, "output_logits": lambda model: True,
    "output_attentions": lambda model: True, "output_hidden_states": lambda model: True,
    "return_dict_in_generate": lambda model: True, "synced_gpus": lambda model: True,
    "cache_implementation": lambda model: "static", "max_cache_len": lambda model: 99,
    "cache_config": lambda model: {"nbits": 4}, "use_mtp": lambda model: True,
    "position_ids": lambda model: torch.arange(1, 7)[None], "is_assistant": lambda model: True,
    "logits_to_keep": lambda model: torch.tensor([2]), "num_beams": lambda model: 2,
    "negative_prompt_ids": lambda model: PROMPT, "assistant_early_exit": lambda model: 1,
    "negative_prompt_attention_mask": lambda model: torch.ones_like(PROMPT),
    "is_causal": lambda model: False, "cu_seq_lens_q": lambda model: torch.tensor([0, 6]),
    "force_words_ids": lambda model: [[3]], "constraints": lambda model: [1],
    "output_router_logits": lambda model: True, "labels": lambda model: PROMPT}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_name(tiny, decoder, name):
    inputs = {} if name == "inputs_embeds" else {"inputs": PROMPT}
    seen = "cache" if name == "past_key_values" else name  # transformers renames it
    with pytest.raises(UserError, match=rf"\b{seen}\b"):
        tiny.generate(**inputs, **{name: REFUSED[name](tiny)}, max_new_tokens=4,
                      custom_generate=generate_with(decoder))


def test_an_empty_cache_of_the_users_is_refused_and_transformers_own_is_not(tiny, decoder):
    """The user would look into it afterwards."""
    with pytest.raises(UserError, match="does not read cache"):
        tiny.generate(PROMPT, cache=transformers.DynamicCache(), max_new_tokens=4,
                      custom_generate=generate_with(decoder))
    for name in ("cache", "past_key_values", "cache_params"):
        refuse_arguments({name: transformers.DynamicCache()})
        with pytest.raises(UserError, match=f"does not read {name}"):
            refuse_arguments({name: filled_cache(tiny)})
        with pytest.raises(UserError, match=f"does not read {name}"):
            refuse_arguments({name: ((EMBEDS, EMBEDS),)})


@pytest.mark.parametrize("mask", [[1, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1], [0, 1, 0, 1, 1, 1]])
def test_masks_that_are_no_padding_on_the_left_are_refused(tiny, decoder, mask):
    with pytest.raises(UserError, match="prompt 0: its attention_mask hides .* padding_side"):
        tiny.generate(PROMPT, attention_mask=torch.tensor([mask]), max_new_tokens=4,
                      custom_generate=generate_with(decoder))


@pytest.mark.parametrize("options", [
    {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]])}, {"use_cache": False},
    {"attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]], dtype=torch.float32)},
    {"position_ids": torch.arange(6)[None]}, {"logits_to_keep": 3}, {"synced_gpus": False},
    {"attention_mask": torch.tensor([[False, True, True, True, True, True]])},
    {"attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]]),
     "position_ids": torch.tensor([[9, 0, 1, 2, 3, 4]])},
    {"cache_implementation": "dynamic"}, {"length_penalty": 2.0}, {"early_stopping": True},
    {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(9), MaxLengthCriteria(11)])},
    {"stopping_criteria": StoppingCriteriaList([EosTokenCriteria([7])])},
    {"logits_processor": LogitsProcessorList()}, {"prefill_chunk_size": 2},
    {"num_return_sequences": 3, "do_sample": True, "top_k": 1}])
def test_what_is_accepted_gives_the_tokens_of_transformers(tiny, decoder, options):
    asked = {"max_new_tokens": 9, **options}
    ours = tiny.generate(PROMPT, **asked, custom_generate=generate_with(decoder))
    assert ours.tolist() == tiny.generate(PROMPT, **asked).tolist()


def test_returned_sequences_are_rows_of_the_batch(tiny, decoder):
    ids = torch.tensor([[0, 0, 91, 17], [5, 9, 250, 33]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 6, "num_return_sequences": 2,
               "do_sample": True, "top_k": 1}
    ours = tiny.generate(ids, **options, custom_generate=generate_with(decoder))
    assert ours.tolist() == tiny.generate(ids, **options).tolist()
    options["num_return_sequences"] = 20
    with pytest.raises(UserError, match="40 prompts at once exceed max_requests"):
        tiny.generate(ids, **options, custom_generate=generate_with(decoder))


# do_sample draws; what names files, devices and other packages is no matter of tokens
FIELDS = sorted(name for name in vars(GenerationConfig()) if not name.startswith("_")
                and name not in ("do_sample", "transformers_version", "compile_config"))
VALUES = st.sampled_from([False, True, 0, 1, 2, 3, 5, 0.0, 0.5, 1.0, 1.7, "x", "dynamic", "high",
                          [3], [[3, 4]], {"a": 1}, [17, 4]])


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        yield
        logging.disable(logging.NOTSET)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(FIELDS), value=VALUES)
@example(field="use_cache", value=0)
def test_a_field_is_refused_or_gives_the_tokens_of_transformers(
        tiny, decoder, quiet, field, value):
    options = {"max_new_tokens": 4, field: value, "do_sample": False}
    try:
        theirs = tiny.generate(PROMPT, **options)
    except Exception:  # transformers does not take it either
        return
    try:
        ours = tiny.generate(PROMPT, **options, custom_generate=generate_with(decoder))
    except UserError:
        return
    assert torch.equal(ours, theirs)


def test_a_field_of_a_later_transformers_is_refused_where_it_is_set(monkeypatch, tiny, decoder):
    with pytest.raises(UserError, match="does not read future_search=3"):
        tiny.generate(PROMPT, generation_config=GenerationConfig(future_search=3),
                      custom_generate=generate_with(decoder))
    defaults = GenerationConfig._get_default_generation_params() | {"future_search": 3}
    monkeypatch.setattr(GenerationConfig, "_get_default_generation_params",
                        staticmethod(lambda: defaults))
    for value in (3, None):
        refuse_config(GenerationConfig(future_search=value))
    for value in (0, False, 4, "x"):
        with pytest.raises(UserError, match="future_search"):
            refuse_config(GenerationConfig(future_search=value))


def test_only_a_generate_of_transformers_is_looked_into():
    def generate(streamer):
        import sys
        return arguments_of(sys._getframe())

    assert generate("mine") == arguments_of(None) == {}
