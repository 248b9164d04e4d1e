"""Logits processors on the GPU: what cpu/bodies/processors.py does, in its order.

Lone biases are added side by side, since each has a token of its own; the others one by one.
"""

from __future__ import annotations

from collections import namedtuple

import triton
import triton.language as tl

from persistent_runtime.rows import layout

BLOCK = tl.constexpr(1024)
PREFIX = tl.constexpr(64)  # tokens of a prefix that are compared at a time

# As in cpu/bodies/processors.py.
Wanted = namedtuple("Wanted", "settings processors biases prefixes token_ids position seed")


@triton.jit
def is_plain(wanted):
    """Whether the model's own logits decide: greedy, and no processor changes one."""
    processors = wanted.processors
    return ((tl.load(wanted.settings + layout.TEMPERATURE) == 0)
            & (tl.load(wanted.settings + layout.REPETITION_PENALTY) == 1)
            & (tl.load(processors + layout.BIAS_BEGIN) == tl.load(processors + layout.BIAS_END))
            & (tl.load(processors + layout.NO_REPEAT_NGRAM) == 0))


@triton.jit
def ends_with(token_ids, position, tokens, length):
    """Whether the last of the `position` tokens are these `length`."""
    different = tl.where(length > position, 1, 0)
    for first in tl.range(0, tl.minimum(length, position), PREFIX):
        k = first + tl.arange(0, PREFIX)
        inside = k < tl.minimum(length, position)
        seen = tl.load(token_ids + position - length + k, mask=inside & (position >= length),
                       other=0)
        wanted = tl.load(tokens + k, mask=inside & (position >= length), other=0)
        different += tl.sum((seen != wanted).to(tl.int32), axis=0)
    return different == 0


@triton.jit
def add_lone_biases(wanted, first, last, scores):
    """The biases of [first, last), which have no prefix and each a token of its own."""
    for begin in tl.range(first, last, BLOCK):
        b = begin + tl.arange(0, BLOCK)
        bias = wanted.biases + b * layout.BIAS_WORDS
        inside = b < last
        limit = tl.load(bias + layout.BIAS_LIMIT, mask=inside, other=layout.NO_LIMIT)
        applies = inside & (wanted.position < tl.load(wanted.processors + limit))
        token = tl.load(bias + layout.BIAS_TOKEN, mask=applies, other=0)
        value = tl.load(bias + layout.BIAS_VALUE, mask=applies, other=0)
        score = tl.load(scores + token, mask=applies, other=0)
        tl.store(scores + token, score + value.to(tl.float32, bitcast=True), mask=applies)


@triton.jit
def add_shared_biases(wanted, first, last, scores):
    """The biases of [first, last): to each token's score the sum of those that apply."""
    total = (first * 0).to(tl.float32)
    for b in tl.range(first, last):
        bias = wanted.biases + b * layout.BIAS_WORDS
        limit = tl.load(wanted.processors + tl.load(bias + layout.BIAS_LIMIT))
        begin = tl.load(bias + layout.BIAS_PREFIX)
        applies = (wanted.position < limit) & ends_with(
            wanted.token_ids, wanted.position, wanted.prefixes + begin,
            tl.load(bias + layout.BIAS_PREFIX_END) - begin)
        value = tl.load(bias + layout.BIAS_VALUE).to(tl.float32, bitcast=True)
        total += tl.where(applies, value, 0.0)
        token = tl.load(bias + layout.BIAS_TOKEN)
        following = tl.load(bias + layout.BIAS_WORDS + layout.BIAS_TOKEN, mask=b + 1 < last,
                            other=-1)
        if following != token:
            tl.store(scores + token, tl.load(scores + token) + total)
        total = tl.where(following == token, total, 0.0)


@triton.jit
def ban_repeats(wanted, scores):
    """No score is left for what would end a run of `n` tokens that has occurred."""
    n = tl.load(wanted.processors + layout.NO_REPEAT_NGRAM)
    token_ids, position = wanted.token_ids, wanted.position
    runs = tl.where(n == 0, 0, tl.maximum(position - n + 1, 0))
    for first in tl.range(0, runs, BLOCK):
        p = first + tl.arange(0, BLOCK)
        same = p < runs
        for k in tl.range(0, n - 1):
            last = tl.load(token_ids + position - n + 1 + k)
            same = same & (tl.load(token_ids + p + k, mask=same, other=-1) == last)
        token = tl.load(token_ids + p + n - 1, mask=same, other=0)
        tl.store(scores + token, float("-inf"), mask=same)


@triton.jit
def process_logits(logits, vocab, wanted, temperature, scores, work):
    """scores: [vocab], the logits as sampling takes them; work: [vocab], overwritten."""
    processors, token_ids, position = wanted.processors, wanted.token_ids, wanted.position
    first_bias, last_bias = tl.load(processors), tl.load(processors + layout.BIAS_END)
    if first_bias < last_bias:
        for first in tl.range(0, vocab, BLOCK):
            k = first + tl.arange(0, BLOCK)
            tl.store(work + k, tl.load(logits + k, mask=k < vocab), mask=k < vocab)
        tl.debug_barrier()  # other threads change them
        shared = tl.load(processors + layout.BIAS_SHARED)
        add_lone_biases(wanted, first_bias, shared, work)
        tl.debug_barrier()
        add_shared_biases(wanted, shared, last_bias, work)
        tl.debug_barrier()
        logits = work
    for first in tl.range(0, vocab, BLOCK):
        k = first + tl.arange(0, BLOCK)
        tl.store(scores + k, tl.div_rn(tl.load(logits + k, mask=k < vocab, other=0), temperature),
                 mask=k < vocab)
    tl.debug_barrier()  # another thread may write the same score again
    penalty = tl.load(wanted.settings + layout.REPETITION_PENALTY)
    if penalty != 1.0:
        for first in tl.range(0, position, BLOCK):
            p = first + tl.arange(0, BLOCK)
            token = tl.load(token_ids + p, mask=p < position, other=0)
            score = tl.load(logits + token, mask=p < position, other=0)
            score = tl.where(score < 0, score * penalty, tl.div_rn(score, penalty))
            tl.store(scores + token, tl.div_rn(score, temperature), mask=p < position)
        tl.debug_barrier()
    ban_repeats(wanted, scores)
    tl.debug_barrier()  # other threads read what was banned
