"""Sampling in select_token against transformers' logits processors: which tokens stay, how often
each is drawn, and that a seed fixes the draw. test_gpu_interpreter.py runs this file for Triton."""

import math

import numpy as np
import pytest
import torch

pytest.importorskip("numba")

import select_token
from cases import sampled, usual_or
from select_token import INTERPRETED, select, select_many
from transformers.generation import logits_process

from frontend.config.sampling import Sampling
from persistent_runtime.rows import layout

# the interpreter takes some ten milliseconds for one
DRAWS = usual_or(100, 150) if INTERPRETED else 20_000


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


@pytest.mark.parametrize("seed", range(usual_or(12, 30) if INTERPRETED else 80))
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
    return np.bincount(select_many(logits, range(count), history=history, **settings),
                       minlength=len(logits))


# a draw with top-k or top-p takes the interpreter long; what they keep is known from the filters
@pytest.mark.parametrize("settings", sampled(
    DISTRIBUTIONS, [DISTRIBUTIONS[0], DISTRIBUTIONS[3]], only_interpreted=True))
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
    assert chi_square < chi_square_limit(len(cells) - 1)


def chi_square_limit(freedom):
    """Wilson-Hilferty: five standard deviations, one false alarm in some million seeds."""
    return freedom * (1 - 2 / (9 * freedom) + 5 * math.sqrt(2 / (9 * freedom))) ** 3


def test_rows_of_a_batch_draw_by_their_own_and_independently():
    logits = np.array([0.0, 1.0, 0.3, -0.5], np.float32)
    expected = np.exp(logits) / np.exp(logits).sum()
    rows = [select_many(logits, [Sampling(seed=seed).of_row(row).seed for seed in range(DRAWS)],
                        temperature=1.0) for row in (0, 1, 15)]
    for draws in rows:
        found = np.bincount(draws, minlength=4)
        wanted = DRAWS * expected
        assert ((found - wanted) ** 2 / wanted).sum() < chi_square_limit(3)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        found = np.bincount(rows[first] * 4 + rows[second], minlength=16).reshape(4, 4)
        wanted = DRAWS * np.outer(expected, expected)
        assert ((found - wanted) ** 2 / wanted).sum() < chi_square_limit(15)


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


EXTREMES = [0.0, 1e-45, 1e-38, 3e38, np.inf, -np.inf, np.nan, -3e38, 1.0]


@pytest.mark.parametrize("seed", range(10 if INTERPRETED else 150))
def test_whatever_the_logits_and_settings_the_token_is_one(seed, monkeypatch):
    """The record is written as it is: no host has looked at its values."""
    rng = np.random.default_rng(seed)
    vocab = int(rng.choice([1, 3, 1025]))
    logits = (rng.choice(EXTREMES, vocab) if seed % 2 else rng.normal(0, 1e38, vocab))
    record = rng.choice([*EXTREMES, -1.0, 5.0], layout.SAMPLING_WORDS).astype(np.float32)
    monkeypatch.setattr(select_token, "sampling_record", lambda sampling: record)
    with np.errstate(over="ignore"):
        logits = logits.astype(np.float32)
    token, _, _ = select(logits, seed=seed, history=[0, vocab - 1])
    assert 0 <= token < vocab


@pytest.mark.skipif(not INTERPRETED, reason="compares with the interpreter, which has to be chosen")
def test_both_backends_draw_the_same_tokens(monkeypatch):
    from persistent_runtime.cpu import single_tile

    rng = np.random.default_rng(9)
    cases = [(logits_of(rng, 3000), settings_of(rng)) for _ in range(usual_or(10, 25))]
    interpreted = [select(logits, seed=k, **settings)[0]
                   for k, (logits, settings) in enumerate(cases)]
    monkeypatch.setattr(select_token, "run_tile", single_tile.run_tile)
    assert interpreted == [select(logits, seed=k, **settings)[0]
                           for k, (logits, settings) in enumerate(cases)]
