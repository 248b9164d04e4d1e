"""Logits processors in select_token against transformers', over random options; then the lists that
workers read, and the fields of generation_config.json. test_gpu_interpreter.py runs this file for
Triton."""

import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from select_token import INTERPRETED, select
from transformers import GenerationConfig
from transformers.generation import logits_process

from event_tensor.errors import UserError
from frontend.config.generation import sampling_of, unserved_fields, warn_of_unserved
from frontend.config.sampling import Sampling
from frontend.decode.processors import BiasList
from persistent_runtime.rows import layout

VOCAB = 12  # few, so that sequences match and rules meet
TOKENS = st.integers(0, VOCAB - 1)
SEQUENCES = st.lists(TOKENS, min_size=1, max_size=4).map(tuple)
BIASES = st.floats(-8, 8, width=32)
OPTIONS = st.fixed_dictionaries({}, optional={
    "sequence_bias": st.dictionaries(SEQUENCES, BIASES, min_size=1, max_size=6),
    "repetition_penalty": st.sampled_from([0.6, 1.3]),
    "no_repeat_ngram_size": st.integers(1, 4),
    "bad_words_ids": st.lists(SEQUENCES.map(list), min_size=1, max_size=5),
    "min_length": st.integers(1, 30), "min_new_tokens": st.integers(1, 8),
    "suppress_tokens": st.lists(TOKENS, max_size=4),
    "begin_suppress_tokens": st.lists(TOKENS, max_size=4)})
END_IDS = st.lists(TOKENS, min_size=1, max_size=2, unique=True)


def processed(logits, history, prompt_tokens, end_ids, options):
    """As `generate` of transformers makes them, in the order of its _get_logits_processor."""
    scores, ids = torch.tensor(np.asarray(logits, np.float32))[None], torch.tensor([list(history)])
    ends = torch.tensor(end_ids)
    makers = {
        "sequence_bias": lambda v: logits_process.SequenceBiasLogitsProcessor(
            [[list(tokens), bias] for tokens, bias in v.items()]),
        "repetition_penalty": logits_process.RepetitionPenaltyLogitsProcessor,
        "no_repeat_ngram_size": logits_process.NoRepeatNGramLogitsProcessor,
        "bad_words_ids": lambda v: logits_process.NoBadWordsLogitsProcessor(v, ends),
        "min_length": lambda v: logits_process.MinLengthLogitsProcessor(v, ends),
        "min_new_tokens": lambda v: logits_process.MinNewTokensLengthLogitsProcessor(
            prompt_tokens, v, ends),
        "suppress_tokens": logits_process.SuppressTokensLogitsProcessor,
        "begin_suppress_tokens": lambda v: logits_process.SuppressTokensAtBeginLogitsProcessor(
            v, prompt_tokens)}
    for name, make in makers.items():
        if name in options:
            if name == "bad_words_ids" and all(w in [[e] for e in end_ids] for w in options[name]):
                continue  # nothing is left, which transformers refuses
            scores = make(options[name])(ids, scores)
    return scores[0].numpy()


@settings(max_examples=15 if INTERPRETED else 300)
@given(st.integers(0, 2**32), st.lists(TOKENS, min_size=1, max_size=24), st.integers(0, 8),
       END_IDS, OPTIONS)
@example(0, [3, 4, 3], 1, [5], {"no_repeat_ngram_size": 2})
@example(1, [3], 0, [5], {"sequence_bias": {(3, 7): 4.0, (7,): 1.0, (2,): -1.0},
                          "suppress_tokens": [7, 7, 1]})
@example(2, [3, 1], 0, [5], {"bad_words_ids": [[5], [3, 1, 4], [2]], "min_new_tokens": 1})
def test_scores_are_those_of_transformers(seed, history, generated, end_ids, options):
    logits = np.random.default_rng(seed).normal(0, 3, VOCAB).astype(np.float32)
    prompt_tokens = max(len(history) - generated, 1)
    chosen = Sampling().with_options({**options, "temperature": 0.0})
    arguments = {name: getattr(chosen, name) for name in options}
    token, scores, _ = select(logits, history=history, end_ids=end_ids,
                              prompt_tokens=prompt_tokens, **arguments)
    expected = processed(logits, history, prompt_tokens, end_ids, options)
    if np.isnan(scores).any():  # nothing was to be done: the model's own logits decide
        scores = logits
    np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-6)
    assert token == int(np.argmax(scores))


def test_a_thousand_tokens_are_suppressed_and_one_stays():
    """More than the GPU's block of lone biases, and more than one of each kind."""
    logits = np.random.default_rng(0).normal(0, 1, 3000).astype(np.float32)
    kept = 1234
    banned = [token for token in range(3000) if token != kept]
    assert select(logits, suppress_tokens=tuple(banned))[0] == kept
    assert select(logits, temperature=1.0, suppress_tokens=tuple(banned))[0] == kept


def test_a_prefix_longer_than_a_block_is_compared_whole():
    logits = np.zeros(12, np.float32)
    logits[4] = 1
    history = [int(k) for k in np.random.default_rng(1).integers(0, 12, 60)]
    assert select(logits, history=history, bad_words_ids=((*history, 4),))[0] != 4
    different = [(history[0] + 1) % 12, *history[1:]]
    assert select(logits, history=history, bad_words_ids=((*different, 4),))[0] == 4


def test_lone_biases_have_tokens_of_their_own():
    chosen = Sampling().with_options({
        "suppress_tokens": [9, 2], "sequence_bias": [[[2], 1.5], [[4, 5], 0.5], [[7], -2]]})
    found = BiasList.of(chosen, [0], 10)
    tokens = found.biases[:, layout.BIAS_TOKEN].tolist()
    assert tokens == [7, 9, 2, 2, 5] and found.lone == 2
    assert found.prefixes.tolist() == [4]


@pytest.mark.parametrize("options, named", [
    ({"bad_words_ids": [[10]]}, "bad_words_ids has the token 10"),
    ({"sequence_bias": {(1, -1): 2.0}}, "sequence_bias has the token -1")])
def test_tokens_outside_the_vocabulary_are_refused(options, named):
    with pytest.raises(UserError, match=named):
        BiasList.of(Sampling().with_options(options), [], 10)


def test_more_biases_than_the_list_holds_are_refused():
    many = Sampling().with_options({"suppress_tokens": list(range(layout.MAX_BIASES + 1))})
    with pytest.raises(UserError, match=f"at most {layout.MAX_BIASES}"):
        BiasList.of(many, [], 10**6)


@pytest.mark.parametrize("options", [
    {"suppress_tokens": 3}, {"suppress_tokens": "3"}, {"suppress_tokens": [1.0]},
    {"bad_words_ids": [3]}, {"bad_words_ids": [[]]}, {"sequence_bias": [3]},
    {"sequence_bias": {(3,): float("nan")}}, {"sequence_bias": {(): 1.0}},
    {"sequence_bias": {(3,): "x"}}, {"min_new_tokens": -1}, {"no_repeat_ngram_size": 1.5},
    {"min_length": float("inf")}])
def test_what_no_processor_can_be_is_named(options):
    with pytest.raises(UserError, match=next(iter(options))):
        Sampling().with_options(options)


FIELDS = OPTIONS.flatmap(lambda options: st.fixed_dictionaries({
    "do_sample": st.booleans()}, optional={
    "temperature": st.floats(0.1, 2), "top_k": st.integers(0, 60), "top_p": st.floats(0.0, 1),
    "min_p": st.floats(0.0, 1), "num_beams": st.integers(1, 3), "typical_p": st.floats(0.2, 1),
    "epsilon_cutoff": st.floats(0, 0.9), "guidance_scale": st.sampled_from([1.0, 1.5]),
    "forced_eos_token_id": TOKENS, "penalty_alpha": st.sampled_from([0.0, 0.6]),
    "dola_layers": st.just("low"), "use_cache": st.booleans(), "pad_token_id": TOKENS,
    "exponential_decay_length_penalty": st.just((2, 1.1)),
    "encoder_repetition_penalty": st.sampled_from([1.0, 1.5]),
    "encoder_no_repeat_ngram_size": st.integers(0, 2),
}).map(lambda fields: fields | options))


@settings(max_examples=20 if INTERPRETED else 200)
@given(FIELDS)
def test_every_field_of_a_generation_config_is_served_or_named(fields):
    """A field that transformers would read is in the sampling values, or in the warning."""
    text = {name: [[list(k), v] for k, v in value.items()] if name == "sequence_bias" else value
            for name, value in fields.items()}
    loaded = json.loads(json.dumps(text))  # as the file holds it
    chosen = sampling_of(loaded, "generation_config.json")
    named = unserved_fields(loaded)
    for name, value in loaded.items():
        if hasattr(chosen, name):
            served = json.loads(json.dumps(getattr(chosen, name)))
            is_filter = name in ("temperature", "top_k", "top_p", "min_p")
            if not is_filter or fields["do_sample"]:
                assert served == value or name == "sequence_bias" and dict(
                    chosen.sequence_bias) == fields[name]
        elif name not in ("do_sample", "use_cache", "pad_token_id"):
            samples = name in ("typical_p", "epsilon_cutoff")
            neutral = value == GENERATION_NEUTRAL.get(name, object())
            assert (name in named) == (not neutral and (fields["do_sample"] or not samples))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_unserved(loaded, "the file")
    assert len(caught) == bool(named)
    assert all(name in str(caught[0].message) for name in named)


GENERATION_NEUTRAL = {"num_beams": 1, "typical_p": 1.0, "epsilon_cutoff": 0.0,
                      "guidance_scale": 1.0, "penalty_alpha": 0.0,
                      "encoder_repetition_penalty": 1.0, "encoder_no_repeat_ngram_size": 0}


def test_transformers_own_defaults_ask_for_nothing_that_is_not_served():
    assert not unserved_fields(GenerationConfig().to_dict())
    assert not unserved_fields(GenerationConfig(do_sample=True).to_dict())
