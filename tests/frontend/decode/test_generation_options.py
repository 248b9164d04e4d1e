"""Sampling, stop strings and batches through the whole decoder, and the values it refuses."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop
from frontend.config.generation import sampling_of
from frontend.config.sampling import Sampling
from frontend.decode.stop_strings import StopFilter

PROMPT = [5, 91, 17, 4, 250, 33]


@pytest.fixture(scope="module")
def demo():
    return compile_decode_loop("demo")


@cache
def shared_tiny():
    """For tests of many examples, which take no fixture."""
    return compile_decode_loop(tiny_llama())


@pytest.fixture(scope="module")
def tiny():
    return tiny_llama()


def tiny_llama():
    import transformers

    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=301, max_position_embeddings=512)).eval()


@pytest.mark.parametrize("options", [
    {"temperature": 1.0}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
    {"temperature": 1.3, "min_p": 0.02, "repetition_penalty": 1.2}])
def test_a_seed_gives_the_same_tokens_on_any_number_of_workers(tiny, options):
    outputs = [compile_decode_loop(tiny, workers=workers).generate(
        PROMPT, max_new_tokens=40, ignore_eos=True, seed=11, **options).output_ids
        for workers in (1, 2, 5)]
    assert outputs[0] == outputs[1] == outputs[2]
    other = compile_decode_loop(tiny, workers=2).generate(
        PROMPT, max_new_tokens=40, ignore_eos=True, seed=12, **options).output_ids
    assert other != outputs[0]


def test_a_penalty_changes_greedy_tokens_as_in_transformers(tiny):
    theirs = tiny.generate(torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False,
                           repetition_penalty=1.7, eos_token_id=None, pad_token_id=0)
    ours = compile_decode_loop(tiny).generate(PROMPT, max_new_tokens=40, ignore_eos=True,
                                              repetition_penalty=1.7)
    assert ours.output_ids == theirs[0, len(PROMPT):].tolist()
    plain = compile_decode_loop(tiny).generate(PROMPT, max_new_tokens=40, ignore_eos=True)
    assert ours.output_ids != plain.output_ids


NEUTRAL = {"top_k": 0, "top_p": 1, "min_p": 0}
FILTER_VALUES = {"top_k": st.integers(0, 3), "top_p": st.sampled_from([0, 0.0, 0.5, 1, 1.0]),
                 "min_p": st.sampled_from([0, 0.0, 0.3])}


@given(st.fixed_dictionaries({}, optional=FILTER_VALUES))
def test_only_a_filter_that_drops_tokens_makes_a_greedy_model_sample(options):
    chosen = Sampling().with_options(options)
    drops = any(value != NEUTRAL[name] for name, value in options.items())
    assert chosen.temperature == (1.0 if drops else 0.0)
    assert chosen.is_greedy == (not drops or options.get("top_p") == 0)


@pytest.mark.parametrize("options", [
    {"top_p": 1.0}, {"top_k": 0}, {"min_p": 0.0}, {"top_p": 1, "top_k": 0, "min_p": 0},
    {"top_p": 0.0}, {"temperature": 1.0, "top_p": 0.0}, {"temperature": 5.0, "top_p": 0.0},
    {"temperature": 1e-38}, {"temperature": 1e-45}, {"temperature": 5e-324},
    {"temperature": 1e-38, "top_k": 3, "top_p": 0.5, "min_p": 0.2}])
def test_options_that_leave_only_the_likeliest_token_are_greedy(tiny, options):
    decoder = shared_tiny()
    greedy = decoder.generate(PROMPT, max_new_tokens=20, ignore_eos=True).output_ids
    assert decoder.generate(PROMPT, max_new_tokens=20, ignore_eos=True,
                            **options).output_ids == greedy
    penalty = {"repetition_penalty": 1.3}
    greedy = decoder.generate(PROMPT, max_new_tokens=20, ignore_eos=True, **penalty).output_ids
    assert decoder.generate(PROMPT, max_new_tokens=20, ignore_eos=True, **penalty,
                            **options).output_ids == greedy


def test_logprobs_are_transformers_log_softmax(tiny):
    result = compile_decode_loop(tiny).generate(PROMPT, max_new_tokens=12, ignore_eos=True,
                                                temperature=1.5, seed=2, logprobs=True)
    ids = torch.tensor([[*PROMPT, *result.output_ids]])
    with torch.inference_mode():
        expected = torch.log_softmax(tiny(ids).logits[0].double(), -1)
    for k, (token, found) in enumerate(zip(result.output_ids, result.logprobs, strict=True)):
        assert abs(found - float(expected[len(PROMPT) - 1 + k, token])) < 1e-4


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_a_batch_gives_what_its_prompts_give_one_by_one(tiny, count):
    """Each row draws as its prompt does alone with the row's seed, which the result names."""
    decoder = compile_decode_loop(tiny)
    prompts = [[(7 * k + 3 * p) % 301 for p in range(1 + (37 * k) % 90)] for k in range(count)]
    for options in ({}, {"temperature": 0.9, "top_k": 30, "seed": 5}, {"temperature": 0.9}):
        together = decoder.generate(prompts, max_new_tokens=10, ignore_eos=True, **options)
        alone = [decoder.generate(p, max_new_tokens=10, ignore_eos=True,
                                  **{**options, "seed": r.sampling.seed})
                 for p, r in zip(prompts, together, strict=True)]
        assert [r.output_ids for r in together] == [r.output_ids for r in alone]
        assert all(r.launches == 1 for r in together)
        if "seed" in options:
            assert together[0].sampling.seed == options["seed"]
            again = decoder.generate(prompts, max_new_tokens=10, ignore_eos=True, **options)
            assert [r.output_ids for r in together] == [r.output_ids for r in again]
    assert decoder.compilations == 1


@settings(max_examples=25)
@given(st.integers(0, 2**63 - 1), st.integers(2, 16), st.sampled_from([0.7, 1.5, 40.0]))
def test_equal_prompts_of_a_sampled_batch_have_different_answers(seed, count, temperature):
    decoder = shared_tiny()
    results = decoder.generate([PROMPT] * count, max_new_tokens=24, ignore_eos=True, seed=seed,
                               temperature=temperature)
    answers = {tuple(r.output_ids) for r in results}
    assert len(answers) == count == len({r.sampling.seed for r in results})
    assert all(0 <= r.sampling.seed < 2**63 for r in results)


def test_an_unseeded_batch_draws_anew(tiny):
    decoder = compile_decode_loop(tiny)
    answers = [r.output_ids for _ in range(3) for r in decoder.generate(
        [PROMPT] * 5, max_new_tokens=16, ignore_eos=True, temperature=1.5)]
    assert len({tuple(answer) for answer in answers}) == 15


def test_each_request_of_a_batch_ends_on_its_own(demo):
    results = demo.generate(["kernel:", "hacker:"], max_new_tokens=30)
    assert [r.finish_reason for r in results] == ["eos", "length"]
    assert len(results[0].output_ids) < len(results[1].output_ids) == 30
    cut = demo.generate(["hacker:", "kernel:", "hacker:"], max_new_tokens=60, stop=["details"])
    assert [r.finish_reason for r in cut] == ["stop", "eos", "stop"]


def test_output_ends_exactly_before_a_stop_string(demo):
    whole = demo.generate("hacker:", max_new_tokens=60).text
    for stop in ("exploring", "programmable systems", " ", whole[7:9]):
        result = demo.generate("hacker:", max_new_tokens=60, stop=["never there", stop])
        assert result.text == whole[:whole.index(stop)]
        assert result.finish_reason == "stop"
        pieces = [token.text for token in demo.stream("hacker:", max_new_tokens=60, stop=[stop])]
        assert "".join(pieces) == result.text
    assert demo.generate("hacker:", max_new_tokens=60, stop=["never there"]).text == whole


def test_stop_filter_releases_what_was_no_stop_string():
    stop = StopFilter(["abc", "bd"])
    assert [stop.push(c) for c in "aabxab"] == ["", "a", "", "abx", "", ""]
    assert stop.flush() == "ab" and not stop.stopped
    assert StopFilter(["ab", "b"]).push("xab") == "x"


@pytest.mark.parametrize("generation, expected", [
    ({}, Sampling()),
    ({"do_sample": False, "temperature": 0.7, "repetition_penalty": 1.1},
     Sampling(repetition_penalty=1.1)),
    ({"do_sample": True}, Sampling(temperature=1.0, top_k=50)),
    ({"do_sample": True, "top_p": 0.0}, Sampling(temperature=1.0, top_k=50, top_p=0.0)),
    ({"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": None},
     Sampling(temperature=0.6, top_k=20, top_p=0.95))])
def test_generation_config_is_honoured(generation, expected):
    assert sampling_of(generation, "generation_config.json") == expected


def test_options_replace_what_the_model_asks_for():
    model = sampling_of({"do_sample": True, "temperature": 0.6, "top_k": 20}, "")
    assert model.with_options({"temperature": 0.0}).is_greedy
    assert model.with_options({"top_p": 0.5, "top_k": None}) == Sampling(
        temperature=0.6, top_k=20, top_p=0.5)
    assert Sampling().with_options({"top_k": 5}).temperature == 1.0
    cold = sampling_of({"do_sample": True, "temperature": 0.6, "top_p": 0.0}, "")
    assert cold.is_greedy and cold.with_options({"top_p": 0.9}).temperature == 0.6
    assert Sampling().with_seed().seed is None
    assert isinstance(Sampling(temperature=1.0).with_seed().seed, int)


@pytest.mark.parametrize("options, named", [
    ({"temperature": -0.1}, "temperature is -0.1"), ({"temperature": float("nan")}, "temperature"),
    ({"top_p": -0.1}, "top_p is -0.1"), ({"top_p": 1.01}, "top_p"), ({"top_k": -1}, "top_k is -1"),
    ({"top_k": 2.5}, "top_k"), ({"min_p": 1.5}, "min_p"), ({"seed": -1}, "seed"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"), ({"stop": [""]}, "empty"),
    ({"stop": 5}, "list"), ({"tempreature": 1.0}, "tempreature"),
    ({"temperature": "hot"}, "no number"), ({"max_new_tokens": 0}, "max_new_tokens")])
def test_values_outside_their_limits_are_named(demo, options, named):
    with pytest.raises(UserError, match=named):
        demo.generate("hacker:", **options)
    assert demo.generate("kernel:", max_new_tokens=2).output_ids  # nothing is left behind


def test_too_many_prompts_and_stop_strings_without_a_tokenizer_are_refused(demo, tiny):
    with pytest.raises(UserError, match="17 prompts at once exceed max_requests 16"):
        demo.generate(["a:"] * 17)
    with pytest.raises(UserError, match="no tokenizer"):
        compile_decode_loop(tiny).generate(PROMPT, stop=["x"])
    with pytest.raises(UserError, match="max_requests is 0"):
        compile_decode_loop(tiny, max_requests=0)
