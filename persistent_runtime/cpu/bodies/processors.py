"""Logits processors: logits → the scores that are sampled, by transformers' rules in their order.

Sequence bias (bans are biases of -inf), repetition penalty, no repeated n-gram, temperature.
"""

from __future__ import annotations

from collections import namedtuple

import numpy as np

from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.intrinsics import advance, float32_from_bits
from persistent_runtime.cpu.vectors.numerics import MINUS_INFINITY, ONE, ZERO
from persistent_runtime.rows import layout

# What a request wants of its next token. settings: its sampling record; processors: its processors
# record; biases, prefixes: the lists that this points into; token_ids: of the request, `position`
# of them are there; seed: of its draws.
Wanted = namedtuple("Wanted", "settings processors biases prefixes token_ids position seed")


@device_jit
def is_plain(wanted):
    """Whether the model's own logits decide: greedy, and no processor changes one."""
    processors = wanted.processors
    return (wanted.settings[layout.TEMPERATURE] == ZERO
            and wanted.settings[layout.REPETITION_PENALTY] == ONE
            and processors[layout.BIAS_BEGIN] == processors[layout.BIAS_END]
            and processors[layout.NO_REPEAT_NGRAM] == 0)


@device_jit
def ends_with(token_ids, position, tokens, length):
    """Whether the last of the `position` tokens are these `length`."""
    if length > position:
        return False
    for k in range(length):
        if token_ids[position - length + k] != tokens[k]:
            return False
    return True


@device_jit
def applies(wanted, bias):
    """Whether a bias has its limit ahead and its prefix behind it."""
    begin, end = bias[layout.BIAS_PREFIX], bias[layout.BIAS_PREFIX_END]
    return (wanted.position < wanted.processors[bias[layout.BIAS_LIMIT]]
            and ends_with(wanted.token_ids, wanted.position, advance(wanted.prefixes, begin),
                          end - begin))


@device_jit
def add_biases(wanted, scores):
    """Adds to each token's score the sum of its biases that apply."""
    total = ZERO
    first, last = wanted.processors[layout.BIAS_BEGIN], wanted.processors[layout.BIAS_END]
    for b in range(first, last):
        bias = advance(wanted.biases, b * layout.BIAS_WORDS)
        if applies(wanted, bias):
            total += float32_from_bits(bias[layout.BIAS_VALUE])
        token = bias[layout.BIAS_TOKEN]
        if b + 1 == last or bias[layout.BIAS_WORDS + layout.BIAS_TOKEN] != token:
            scores[token] += total
            total = ZERO


@device_jit
def ban_repeats(wanted, scores):
    """No score is left for what would end a run of `n` tokens that has occurred."""
    n = np.int64(wanted.processors[layout.NO_REPEAT_NGRAM])
    token_ids, position = wanted.token_ids, wanted.position
    if n == 0:
        return
    for p in range(position - n + 1):
        if ends_with(token_ids, position, advance(token_ids, p), n - 1):
            scores[token_ids[p + n - 1]] = MINUS_INFINITY


@device_jit
def process_logits(logits, vocab, wanted, temperature, scores, work):
    """scores: [vocab], the logits as sampling takes them; work: [vocab], overwritten."""
    penalty = wanted.settings[layout.REPETITION_PENALTY]
    processors = wanted.processors
    if processors[layout.BIAS_BEGIN] < processors[layout.BIAS_END]:
        for k in range(vocab):
            work[k] = logits[k]
        add_biases(wanted, work)
        logits = work
    for k in range(vocab):
        scores[k] = logits[k] / temperature
    if penalty != ONE:
        for p in range(wanted.position):  # a token that comes again gets the same value again
            token = wanted.token_ids[p]
            score = logits[token]
            score = score * penalty if score < ZERO else score / penalty
            scores[token] = score / temperature
    ban_repeats(wanted, scores)
