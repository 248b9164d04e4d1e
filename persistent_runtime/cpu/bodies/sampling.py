"""Sampling: scores → a token, by the rules and in the order of transformers.

Top-k, top-p, min-p, then a draw; processors.py makes the scores. Random numbers are counters: the
token for a position depends on the request's seed, the position and the probabilities, on nothing
else, so any number of workers and either backend draw the same. Sums run over fixed blocks of the
vocabulary for the same reason.
"""

from __future__ import annotations

import math

import numpy as np

from persistent_runtime.cpu.bodies.processors import process_logits
from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.blocks import maximum
from persistent_runtime.cpu.vectors.intrinsics import advance
from persistent_runtime.cpu.vectors.numerics import (
    INFINITY,
    MINUS_INFINITY,
    ONE,
    ZERO,
    exp,
    largest,
)
from persistent_runtime.functions.dense import SAMPLING_BINS
from persistent_runtime.rows import layout

BLOCK = 1024  # tokens whose probabilities are summed before those of other blocks
BINS_PER_UNIT = np.float32(64)  # logits closer than this share a bin, those far down share the last
FARTHEST = np.float32((SAMPLING_BINS - 1) / 64)

MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)  # of Philox4x32-10 (Salmon et al. 2011)
KEY_STEPS = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)
WORD_BITS, DROPPED_BITS = np.uint64(32), np.uint64(8)
UNIFORM_STEP = np.float32(2.0**-24)


@device_jit
def uniform(seed, position):  # noqa: ANN201
    """A float32 in [0, 1): the first word of Philox4x32-10 at counter (position, 0, 0, 0)."""
    key_0, key_1 = np.uint64(seed) & LOW, np.uint64(seed) >> WORD_BITS
    c0, c1, c2, c3 = np.uint64(position), np.uint64(0), np.uint64(0), np.uint64(0)
    for _ in range(10):
        product_0, product_1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = ((product_1 >> WORD_BITS) ^ c1 ^ key_0, product_1 & LOW,
                          (product_0 >> WORD_BITS) ^ c3 ^ key_1, product_0 & LOW)
        key_0, key_1 = (key_0 + KEY_STEPS[0]) & LOW, (key_1 + KEY_STEPS[1]) & LOW
    return np.float32(c0 >> DROPPED_BITS) * UNIFORM_STEP


@device_jit
def bin_of(score, top):
    """Larger scores have lower bins; NaN and what is far below the top have the last one."""
    distance = top - score
    return np.int64(distance * BINS_PER_UNIT) if distance < FARTHEST else SAMPLING_BINS - 1


@device_jit
def fill_bins(scores, vocab, top, counts, masses, work):
    """counts, masses: [SAMPLING_BINS] of tokens and of exp(score - top) per bin."""
    for b in range(SAMPLING_BINS):
        counts[b] = ZERO
        masses[b] = ZERO
    for k in range(vocab):
        work[k] = exp(scores[k] - top)
    for k in range(vocab):
        b = bin_of(scores[k], top)
        counts[b] += ONE
        masses[b] += work[k]


@device_jit
def sift_down(values, begin, end):
    """Restores the heap with the smallest value at the root after a change at `begin`."""
    parent = begin
    value = values[parent]
    while 2 * parent + 1 < end:
        child = 2 * parent + 1
        if child + 1 < end and values[child + 1] < values[child]:
            child += 1
        if values[child] >= value:
            break
        values[parent] = values[child]
        parent = child
    values[parent] = value


@device_jit
def sort_descending(values, count):
    """Heapsort in place."""
    for k in range(count // 2 - 1, -1, -1):
        sift_down(values, k, count)
    for end in range(count - 1, 0, -1):
        smallest = values[0]
        values[0] = values[end]
        values[end] = smallest
        sift_down(values, 0, end)


@device_jit
def sorted_bin(scores, vocab, top, wanted, work):
    """Puts the scores of one bin into `work` in descending order; returns how many there are."""
    count = 0
    for k in range(vocab):
        if bin_of(scores[k], top) == wanted and scores[k] == scores[k]:
            work[count] = scores[k]
            count += 1
    sort_descending(work, count)
    return count


@device_jit
def top_k_threshold(scores, vocab, top, top_k, counts, masses, work):
    """(the k-th largest score, the mass of all scores from it on)"""
    above, mass, b = ZERO, ZERO, 0
    while b < SAMPLING_BINS - 1 and above + counts[b] < np.float32(top_k):
        above += counts[b]
        mass += masses[b]
        b += 1
    count = sorted_bin(scores, vocab, top, b, work)
    if count == 0:  # the others are no numbers
        return MINUS_INFINITY, mass
    threshold = work[min(top_k - np.int64(above), count) - 1]
    k = 0
    while k < count and work[k] >= threshold:  # equal scores are all kept, as transformers does
        mass += exp(work[k] - top)
        k += 1
    return threshold, mass


@device_jit
def top_p_threshold(scores, vocab, top, wanted_mass, lowest, counts, masses, work):
    """The smallest score that tokens of a larger score do not make superfluous: their mass is
    below `wanted_mass`. Scores under `lowest` have been dropped already."""
    mass, b = ZERO, 0
    last = SAMPLING_BINS - 1 if lowest == MINUS_INFINITY else bin_of(lowest, top)
    while b < last and mass + masses[b] < wanted_mass:
        mass += masses[b]
        b += 1
    count = sorted_bin(scores, vocab, top, b, work)
    threshold = lowest
    for k in range(count):
        if work[k] < lowest or mass >= wanted_mass:
            break
        threshold = work[k]
        mass += exp(work[k] - top)
    return threshold


@device_jit
def drop_scores(scores, first, last, top, threshold, min_p):
    """Turns what no filter keeps into -inf; returns the mass of the rest. The likeliest stays."""
    total = ZERO
    for k in range(first, last):
        score = scores[k]
        weight = exp(score - top)
        kept = ((score >= threshold) & (weight >= min_p)) | (score == top)
        scores[k] = score if kept else MINUS_INFINITY
        total += weight if kept else ZERO
    return total


@device_jit
def draw(scores, vocab, top, threshold, min_p, random, sums):
    """The token at which the cumulative mass of the kept tokens passes `random` of the whole.

    sums: room for the mass of every block.
    """
    total, blocks, last = ZERO, (vocab + BLOCK - 1) // BLOCK, 0
    for block in range(blocks):
        first = block * BLOCK
        sums[block] = drop_scores(scores, first, min(first + BLOCK, vocab), top, threshold, min_p)
        total += sums[block]
        last = block if sums[block] > ZERO else last
    wanted, passed, block = random * total, ZERO, 0
    while block < last and passed + sums[block] <= wanted:
        passed += sums[block]
        block += 1
    chosen = np.int64(-1)
    for k in range(block * BLOCK, vocab):
        if scores[k] > MINUS_INFINITY:
            chosen = k
            passed += exp(scores[k] - top)
            if passed > wanted:
                break
    return chosen


@device_jit
def sample(logits, vocab, wanted, scores, work, scratch):
    """The token for the wanted position. scores: [vocab] processed logits; work: [vocab]."""
    settings = wanted.settings
    temperature = settings[layout.TEMPERATURE]
    greedy, top = temperature == ZERO, INFINITY
    while not top < INFINITY:
        process_logits(logits, vocab, wanted, ONE if greedy else temperature, scores, work)
        top = maximum(scores, vocab)
        if greedy:
            break
        greedy = not top < INFINITY  # so cold that scores overflow: the likeliest is certain
    if greedy or not top > MINUS_INFINITY:
        return largest(scores, vocab)[1]
    top_k, top_p = settings[layout.TOP_K], settings[layout.TOP_P]
    top_k = np.int64(top_k) if ZERO < top_k < np.float32(vocab) else np.int64(0)  # 0: of all
    counts, masses = scratch, advance(scratch, SAMPLING_BINS)
    threshold = MINUS_INFINITY
    if top_k > 0 or top_p < ONE:
        fill_bins(scores, vocab, top, counts, masses, work)
        mass = ZERO
        if top_k > 0:
            threshold, mass = top_k_threshold(scores, vocab, top, top_k, counts, masses, work)
        else:
            for b in range(SAMPLING_BINS):
                mass += masses[b]
        if top_p < ONE:
            threshold = top_p_threshold(scores, vocab, top, top_p * mass, threshold, counts, masses,
                                        work)
    return draw(scores, vocab, top, threshold, settings[layout.MIN_P],
                uniform(wanted.seed, wanted.position), work)


@device_jit
def logprob(logits, vocab, token):
    """log softmax(logits)[token], of the model's own logits."""
    top, total = maximum(logits, vocab), ZERO
    for first in range(0, vocab, BLOCK):
        part = ZERO
        for k in range(first, min(first + BLOCK, vocab)):
            part += exp(logits[k] - top)
        total += part
    return logits[token] - top - np.float32(math.log(total))
