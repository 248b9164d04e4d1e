"""Sampling on the GPU: what cpu/bodies/sampling.py does, with searches in place of bins and a sort.

Scores are compared as integers of the same order (`ordered`), so a threshold is found by halving
the range of integers. First, what is far below the largest score is left out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from persistent_runtime.gpu.bodies.processors import process_logits
from persistent_runtime.rows import layout

BLOCK = tl.constexpr(1024)  # tokens whose probabilities are summed before those of other blocks
BLOCKS = tl.constexpr(512)  # of the vocabulary, at most
FARTHEST = tl.constexpr(16.0)  # below the largest score: what is looked at apart from the rest
LOWEST, HIGHEST = tl.constexpr(-(2**31)), tl.constexpr(2**31 - 1)
UNIFORM_STEP = tl.constexpr(2.0**-24)


@triton.jit
def uniform(seed, position):
    """A float32 in [0, 1): the first word of Philox4x32-10 at counter (position, 0, 0, 0)."""
    zero = (position * 0).to(tl.uint32)
    word, _, _, _ = tl.philox(seed, position.to(tl.uint32), zero, zero, zero)
    return (word >> 8).to(tl.float32) * UNIFORM_STEP


@triton.jit
def ordered(scores):
    """float32 → int32 of the same order; NaN comes last."""
    bits = scores.to(tl.int32, bitcast=True)
    key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(scores == scores, key, LOWEST)


@triton.jit
def largest(values, count):
    """The largest of `count` values, NaNs passed over, and the index of its first occurrence."""
    best = tl.full([BLOCK], float("-inf"), tl.float32)
    place = tl.full([BLOCK], HIGHEST, tl.int32)
    for first in tl.range(0, count, BLOCK):
        k = first + tl.arange(0, BLOCK)
        value = tl.load(values + k, mask=k < count, other=float("-inf"))
        place = tl.where(value > best, k, place)
        best = tl.where(value > best, value, best)
    top = tl.max(best, axis=0)
    return top, tl.min(tl.where(best == top, place, HIGHEST), axis=0)


@triton.jit
def gather_from(scores, vocab, lowest, found):
    """Copies all scores that are at least `lowest` to `found`; returns how many there are."""
    count = vocab * 0
    for first in tl.range(0, vocab, BLOCK):
        k = first + tl.arange(0, BLOCK)
        score = tl.load(scores + k, mask=k < vocab, other=float("-inf"))
        wanted = (score >= lowest) & (k < vocab)
        place = count + tl.cumsum(wanted.to(tl.int32), axis=0) - 1
        tl.store(found + place, score, mask=wanted)
        count += tl.sum(wanted.to(tl.int32), axis=0)
    tl.debug_barrier()  # other threads read them
    return count


@triton.jit
def from_key_on(found, count, top, key):
    """(tokens, mass) of the scores whose integer is at least `key`."""
    tokens = tl.zeros([BLOCK], tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    for first in tl.range(0, count, BLOCK):
        k = first + tl.arange(0, BLOCK)
        score = tl.load(found + k, mask=k < count, other=float("-inf"))
        inside = (ordered(score) >= key) & (k < count)
        tokens += inside.to(tl.float32)
        mass += tl.where(inside, tl.exp(score - top), 0.0)
    return tl.sum(tokens, axis=0), tl.sum(mass, axis=0)


@triton.jit
def distance_of(scores, vocab, top, tokens, wanted):
    """How far below the top one has to go for `tokens` tokens and the mass `wanted`: one of a few
    distances, or inf."""
    distance = tl.full((), 1.0, tl.float32)
    n, m = -distance, -distance
    while ((n < tokens) | (m < wanted)) & (distance < FARTHEST):
        distance *= 4
        n, m = from_key_on(scores, vocab, top, ordered(top - distance))
    return tl.where((n >= tokens) & (m >= wanted), distance, float("inf"))


@triton.jit
def search_key(found, count, top, whole, tokens, wanted):
    """(the largest integer from which on there are at least `tokens` tokens and the mass `wanted`,
    the mass from there on). whole: the mass of all."""
    low = tl.full((), LOWEST, tl.int32)
    high = tl.full((), HIGHEST, tl.int32)
    mass = whole
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)  # their mean, rounded up, without overflow
        n, m = from_key_on(found, count, top, middle)
        enough = (n >= tokens) & (m >= wanted)
        mass = tl.where(enough, m, mass)
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return low, mass


@triton.jit
def threshold_key(scores, vocab, top, top_k, top_p, found):
    """The integer that kept scores have at least, by top-k and then top-p."""
    _, mass = from_key_on(scores, vocab, top, LOWEST + 1)  # NaN alone is lower
    limited = top_k > 0
    tokens = top_k.to(tl.float32)
    distance = distance_of(scores, vocab, top, tokens, tl.where(limited, 0.0, mass * top_p))
    count = gather_from(scores, vocab, top - distance, found)
    key = tl.full((), LOWEST, tl.int32)
    # first top-k, then top-p of what is left: from its key on the mass suffices, above it does not
    for rule in tl.range(tl.where(limited, 0, 1), tl.where(top_p < 1.0, 2, 1)):
        found_key, mass = search_key(found, count, top, mass, tl.where(rule == 0, tokens, 0.0),
                                     tl.where(rule == 0, 0.0, mass * top_p))
        key = tl.maximum(key, found_key)
    return key


@triton.jit
def drop_scores(scores, vocab, top, key, min_p, sums):
    """Turns what no filter keeps into -inf; sums = the mass of the rest, block by block. The
    likeliest stays."""
    for first in tl.range(0, vocab, BLOCK):
        k = first + tl.arange(0, BLOCK)
        score = tl.load(scores + k, mask=k < vocab, other=float("-inf"))
        weight = tl.exp(score - top)
        kept = ((ordered(score) >= key) & (weight >= min_p)) | (score == top)
        kept = kept & (score == score)
        tl.store(scores + k, tl.where(kept, score, float("-inf")), mask=k < vocab)
        tl.store(sums + first // BLOCK, tl.sum(tl.where(kept, weight, 0.0), axis=0))
    tl.debug_barrier()  # other threads read them


@triton.jit
def draw(scores, vocab, top, random, sums):
    """The token at which the cumulative mass of the kept tokens passes `random` of the whole."""
    b = tl.arange(0, BLOCKS)
    mass = tl.load(sums + b, mask=b < tl.cdiv(vocab, BLOCK), other=0)
    passed = tl.cumsum(mass, axis=0)
    wanted = random * tl.sum(mass, axis=0)
    last = tl.max(tl.where(mass > 0, b, 0), axis=0)
    block = tl.minimum(tl.min(tl.where((passed > wanted) & (mass > 0), b, BLOCKS), axis=0), last)
    before = tl.sum(tl.where(b < block, mass, 0.0), axis=0)
    k = block * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(scores + k, mask=k < vocab, other=float("-inf"))
    kept = score > float("-inf")
    through = before + tl.cumsum(tl.where(kept, tl.exp(score - top), 0.0), axis=0)
    first = tl.min(tl.where(kept & (through > wanted), k, HIGHEST), axis=0)
    return tl.minimum(first, tl.max(tl.where(kept, k, 0), axis=0))


@triton.jit
def sample(logits, vocab, wanted, scores, work):
    """The token for the wanted position. scores: [vocab] processed logits; work: [vocab]."""
    settings = wanted.settings
    temperature = tl.load(settings + layout.TEMPERATURE)
    top_k = tl.load(settings + layout.TOP_K)
    top_k = tl.where((top_k > 0) & (top_k < vocab), top_k, 0).to(tl.int32)  # 0: of all
    top_p, min_p = tl.load(settings + layout.TOP_P), tl.load(settings + layout.MIN_P)
    greedy, settled = temperature == 0, False
    top, token = temperature, vocab * 0
    while settled == 0:
        process_logits(logits, vocab, wanted, tl.where(greedy, 1.0, temperature), scores, work)
        top, token = largest(scores, vocab)
        settled = greedy | (top < float("inf"))
        greedy = greedy | (top == float("inf"))  # so cold that scores overflow: it is certain
        tl.debug_barrier()  # the scores may be written again
    if top == float("-inf"):
        token = vocab * 0
    elif greedy == 0:
        key = tl.full((), LOWEST, tl.int32)
        if (top_k > 0) | (top_p < 1.0):
            key = threshold_key(scores, vocab, top, top_k, top_p, work)
        tl.debug_barrier()  # `work` is written again
        drop_scores(scores, vocab, top, key, min_p, work)
        token = draw(scores, vocab, top, uniform(tl.load(wanted.seed), wanted.position), work)
    return token


@triton.jit
def logprob(logits, vocab, token):
    """log softmax(logits)[token], of the model's own logits."""
    top, _ = largest(logits, vocab)
    total = tl.zeros([BLOCK], tl.float32)
    for first in tl.range(0, vocab, BLOCK):
        k = first + tl.arange(0, BLOCK)
        total += tl.exp(tl.load(logits + k, mask=k < vocab, other=float("-inf")) - top)
    return tl.load(logits + token) - top - tl.log(tl.sum(total, axis=0))
