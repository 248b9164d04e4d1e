"""Sampling in select_token against transformers' logits processors: which tokens stay, how often
each is drawn, and that a seed fixes the draw. test_gpu_interpreter.py runs this file for Triton."""

import math
import os

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

from transformers.generation import logits_process

from frontend.control import sampling_record
from frontend.processors import BiasList, processors_record
from frontend.sampling import Sampling
from persistent_runtime import device_functions as df
from persistent_runtime import layout
from persistent_runtime.cpu.single_tile import run_tile

CAPACITY = 64
SPARE_BIAS = np.zeros((1, layout.BIAS_WORDS), np.int32)  # an array without elements has no address
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DRAWS = 150 if INTERPRETED else 20_000  # the interpreter takes some ten milliseconds for one


def select(logits, seed=0, history=(3,), logprobs=False, end_ids=(), prompt_tokens=None,
           **settings):
    """(token, processed logits, log-probability) for the position after `history`, whose first
    `prompt_tokens`, by default all, were the prompt."""
    vocab = len(logits)
    sampling = Sampling(logprobs=logprobs, **settings)
    biases = BiasList.of(sampling, end_ids, vocab)
    record = processors_record(biases, sampling, prompt_tokens or len(history))
    logits = np.ascontiguousarray(logits, np.float32).reshape(1, vocab)
    token_ids = np.zeros((1, CAPACITY), np.int32)
    token_ids[0, :len(history)] = history
    scores = np.full((1, 2, vocab), np.nan, np.float32)
    logprob = np.zeros((1, CAPACITY), np.float32)
    best = np.nanmax(logits) if np.isfinite(logits).any() else -np.inf
    run_tile(df.select_token, "float32", {
        "tile_max": np.full((1, 1), best, np.float32),
        "tile_argmax": np.array([[int(np.argmax(logits[0] == best))]], np.int32),
        "logits": logits, "scores": scores, "sampling": sampling_record(sampling)[None],
        "seed": np.array([seed], np.int64), "processors": record[None],
        "biases": np.concatenate([biases.biases, SPARE_BIAS]),
        "bias_prefixes": np.append(biases.prefixes, 0).astype(np.int32),
        "logit_row": np.zeros(1, np.int32), "row_request": np.zeros(1, np.int32),
        "row_position": np.array([len(history) - 1], np.int32), "token_ids": token_ids,
        "token_time": np.zeros((1, CAPACITY), np.int64), "token_logprob": logprob,
        "stop_ids": np.array([-1], np.int32), "length_limit": np.array([CAPACITY], np.int32),
        "length": np.zeros(1, np.int32), "finished": np.zeros(1, np.int32),
    }, (0,), df.SAMPLING_SCRATCH)
    return int(token_ids[0, len(history)]), scores[0, 0], float(logprob[0, len(history)])


def processed(logits, history, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0,
              repetition_penalty=1.0):
    """As `generate` of transformers processes them, in its order."""
    scores, ids = torch.tensor(np.asarray(logits, np.float32))[None], torch.tensor([list(history)])
    steps = []
    if repetition_penalty != 1:
        steps.append(logits_process.RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if temperature != 1:
        steps.append(logits_process.TemperatureLogitsWarper(temperature))
    if top_k:
        steps.append(logits_process.TopKLogitsWarper(top_k))
    if top_p < 1:
        steps.append(logits_process.TopPLogitsWarper(top_p))
    if min_p:
        steps.append(logits_process.MinPLogitsWarper(min_p))
    for step in steps:
        scores = step(ids, scores)
    return scores[0].numpy()


def settings_of(rng):
    return {"temperature": float(rng.choice([0.3, 0.7, 1.0, 1.7])),
            "top_k": int(rng.choice([0, 1, 5, 40, 10**6])),
            "top_p": float(rng.choice([1.0, 0.95, 0.5, 0.01])),
            "min_p": float(rng.choice([0.0, 0.05, 0.5, 1.0])),
            "repetition_penalty": float(rng.choice([1.0, 1.3, 0.7]))}


def logits_of(rng, vocab):
    kind = rng.integers(4)
    if kind == 0:  # flat
        return rng.normal(0, 0.3, vocab).astype(np.float32)
    if kind == 1:  # peaked, with a long tail
        return (rng.normal(0, 1, vocab) ** 3 * 4).astype(np.float32)
    if kind == 2:  # few different values: ties
        return rng.integers(-3, 4, vocab).astype(np.float32)
    logits = rng.normal(0, 5, vocab).astype(np.float32)
    logits[rng.integers(0, vocab, vocab // 3)] = -np.inf
    logits[0] = 0
    return logits


def agree(ours, theirs, logits, history, settings):
    """Both keep the same tokens with the same scores, unless rounding decides: the mass of what
    only one of them keeps lies within float32's reach of top_p, or the score ties with a kept one
    (transformers cuts ties in the order of its sort, here they stay together)."""
    kept, expected = ours > -np.inf, theirs > -np.inf
    both = kept & expected
    assert both.any()
    np.testing.assert_allclose(ours[both], theirs[both], rtol=3e-6, atol=1e-6)
    if not (differ := kept ^ expected).any():
        return
    assert settings["top_p"] < 1, "without top-p nothing depends on a sum"
    plain = {**settings, "top_p": 1.0, "min_p": 0.0}
    before = processed(logits, history, **plain).astype(np.float64)
    mass = np.exp(before - before.max())
    mass /= mass.sum()
    for token in np.flatnonzero(differ):
        above = mass[before > before[token]].sum()
        tied = (before == before[token]).sum() > 1
        weight = math.exp(before[token] - before.max())
        rounding = (abs(above - settings["top_p"]) < 1e-5
                    or abs(weight - settings["min_p"]) < 1e-6)
        assert tied or rounding, (token, above, settings)


@pytest.mark.parametrize("seed", range(30 if INTERPRETED else 80))
def test_the_filters_keep_what_transformers_keeps(seed):
    rng = np.random.default_rng(seed)
    vocab = int(rng.choice([3, 50, 1024, 1777, 5000]))
    logits, settings = logits_of(rng, vocab), settings_of(rng)
    history = rng.integers(0, vocab, 20).tolist()
    token, ours, _ = select(logits, seed=seed, history=history, **settings)
    agree(ours, processed(logits, history, **settings), logits, history, settings)
    assert ours[token] > -np.inf


def test_greedy_with_a_penalty_takes_the_largest_penalised_logit():
    logits = np.array([1.0, 3.0, 2.9, -1.0], np.float32)
    assert select(logits, history=[0])[0] == 1
    assert select(logits, history=[1], repetition_penalty=1.2)[0] == 2


DISTRIBUTIONS = [
    {"temperature": 1.0}, {"temperature": 0.6, "top_k": 12}, {"temperature": 1.4, "top_p": 0.8},
    {"temperature": 1.0, "min_p": 0.2, "repetition_penalty": 1.5},
    {"temperature": 0.9, "top_k": 30, "top_p": 0.7, "min_p": 0.05}]


def draws_of(logits, count, history, **settings):
    return np.bincount([select(logits, seed=seed, history=history, **settings)[0]
                        for seed in range(count)], minlength=len(logits))


@pytest.mark.parametrize("settings", DISTRIBUTIONS)
def test_tokens_are_drawn_as_often_as_their_probability_says(settings):
    logits = np.random.default_rng(5).normal(0, 1.5, 60).astype(np.float32)
    history = [1, 7, 7, 30]
    found = draws_of(logits, DRAWS, history, **settings)
    scores = processed(logits, history, **settings).astype(np.float64)
    expected = np.exp(scores - scores.max())
    expected *= DRAWS / expected.sum()
    assert not found[expected == 0].any()
    # rare tokens are counted together, so that every cell expects enough
    common = expected >= 8
    cells = np.append(found[common], found[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    cells, wanted = cells[wanted > 0], wanted[wanted > 0]
    chi_square = ((cells - wanted) ** 2 / wanted).sum()
    freedom = len(cells) - 1
    # Wilson-Hilferty: five standard deviations, one false alarm in some million seeds
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 5 * math.sqrt(2 / (9 * freedom))) ** 3


def test_a_seed_and_a_position_fix_the_draw():
    logits = np.zeros(5000, np.float32)
    once = [select(logits, seed=s, temperature=1.0)[0] for s in (1, 2, 2**40 + 1)]
    again = [select(logits, seed=s, temperature=1.0)[0] for s in (1, 2, 2**40 + 1)]
    assert once == again and len(set(once)) == 3
    assert select(logits, seed=1, history=[3, 3], temperature=1.0)[0] != once[0]
    assert philox(0, 0) == 0x6627E8D5  # the published test vector of Philox4x32-10
    for seed, token in zip((1, 2, 2**40 + 1), once, strict=True):
        assert abs(token - (philox(seed, 1) >> 8) / 2**24 * len(logits)) <= 1


def philox(seed, position):
    """First word of Philox4x32-10 at counter (position, 0, 0, 0), word by word."""
    low = 2**32 - 1
    counter, key = [position, 0, 0, 0], [seed & low, seed >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [(b >> 32) ^ counter[1] ^ key[0], b & low, (a >> 32) ^ counter[3] ^ key[1],
                   a & low]
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    return counter[0]


def test_logprobs_are_those_of_the_models_own_logits():
    logits = np.random.default_rng(1).normal(0, 3, 3000).astype(np.float32)
    expected = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1)
    for settings in ({}, {"temperature": 0.5, "top_k": 7, "repetition_penalty": 2.0}):
        token, _, logprob = select(logits, logprobs=True, **settings)
        assert abs(logprob - float(expected[token])) < 1e-5


@pytest.mark.parametrize("settings", [{"temperature": 1.0, "top_k": 3, "top_p": 0.5}, {},
                                      {"temperature": 0.0, "repetition_penalty": 1.1}])
def test_logits_without_a_number_give_a_token_and_no_hang(settings):
    assert 0 <= select(np.full(40, np.nan, np.float32), **settings)[0] < 40
    some = np.full(40, np.nan, np.float32)
    some[17] = 1.0
    if settings:
        assert select(some, **settings)[0] == 17


@pytest.mark.skipif(not INTERPRETED, reason="compares with the interpreter, which has to be chosen")
def test_both_backends_draw_the_same_tokens(monkeypatch):
    import sys

    from persistent_runtime.cpu import single_tile

    rng = np.random.default_rng(9)
    cases = [(logits_of(rng, 3000), settings_of(rng)) for _ in range(25)]
    interpreted = [select(logits, seed=k, **settings)[0]
                   for k, (logits, settings) in enumerate(cases)]
    monkeypatch.setattr(sys.modules[__name__], "run_tile", single_tile.run_tile)
    assert interpreted == [select(logits, seed=k, **settings)[0]
                           for k, (logits, settings) in enumerate(cases)]
