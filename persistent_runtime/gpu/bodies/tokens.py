"""Bodies at both ends of a step: token ids to rows, logits to the next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from persistent_runtime.functions import dense as device_functions
from persistent_runtime.gpu.bodies.arguments import (
    ROW_ADVANCE,
    ROW_BASE,
    dim,
    float_parameter,
    load_weights,
    logit_entry,
    operand,
    record_offsets,
    row_entry,
    tile_range,
    weight_row,
    word,
)
from persistent_runtime.gpu.bodies.processors import Wanted, is_plain
from persistent_runtime.gpu.bodies.sampling import logprob, sample
from persistent_runtime.gpu.compile.registry import Shape, gpu_body
from persistent_runtime.gpu.worker.sync import globaltimer
from persistent_runtime.rows import layout

EMBED = record_offsets(device_functions.embed_tokens)
SELECT = record_offsets(device_functions.select_token)
EMBED_ROWS, EMBED_COLUMNS = tl.constexpr(2), tl.constexpr(2048)
CANDIDATES, STOP_IDS = tl.constexpr(1024), tl.constexpr(32)
NO_TILE = tl.constexpr(2**30)


@dataclass(frozen=True, slots=True)
class TokenConfiguration:
    formats: Any  # of the operands, by their names
    interpreted: bool


def token_configuration(shape: Shape) -> TokenConfiguration:
    return TokenConfiguration(shape.formats, shape.interpreted)


@gpu_body(device_functions.embed_tokens, configure=token_configuration)
@triton.jit(noinline=True)
def embed_tokens(arguments, tile, step, CONFIG: tl.constexpr):
    """out[r] = weight[token_ids[request of r, position of r]] * multiplier"""
    hidden_size = word(arguments, EMBED.hidden_size)
    first, last = tile_range(tile[0], word(arguments, EMBED.tile_m), dim(arguments, EMBED.out, 0))
    token_ids = operand(arguments, EMBED.token_ids, tl.int32)
    multiplier = float_parameter(arguments, EMBED.multiplier)
    out = operand(arguments, EMBED.out, tl.float32)
    for first_row in tl.range(first, last, EMBED_ROWS):
        row = first_row + tl.arange(0, EMBED_ROWS)
        there = row < last
        request = row_entry(arguments, EMBED.row_request, step, row, there)
        position = row_entry(arguments, EMBED.row_position, step, row, there)
        place = request * dim(arguments, EMBED.token_ids, 1) + position
        token = tl.load(token_ids + place, mask=there, other=0)
        source = weight_row(arguments, EMBED.weight, token, hidden_size, CONFIG.formats.weight)
        for column in tl.range(0, hidden_size, EMBED_COLUMNS):
            k = column + tl.arange(0, EMBED_COLUMNS)
            mask = there[:, None] & (k < hidden_size)[None, :]
            value = load_weights(source[:, None], 0, k[None, :], hidden_size, mask,
                                 CONFIG.formats.weight, EVICTION="")
            tl.store(out + row[:, None] * hidden_size + k[None, :],
                     value.to(tl.float32) * multiplier, mask=mask)


@triton.jit
def has_finite_logits(arguments, logit_row):
    """Whether no tile met a logit that is NaN or infinite: its maximum is NaN then."""
    tiles = dim(arguments, SELECT.tile_max, 1)
    tile_max = operand(arguments, SELECT.tile_max, tl.float32) + logit_row * tiles
    odd = tl.zeros([CANDIDATES], tl.int32)
    for first in tl.range(0, tiles, CANDIDATES):
        j = first + tl.arange(0, CANDIDATES)
        value = tl.load(tile_max + j, mask=j < tiles, other=0)
        odd += (value != value).to(tl.int32)
    return tl.sum(odd, axis=0) == 0


@triton.jit
def best_token(arguments, logit_row):
    """The token of the largest tile maximum; tiles ascend, so the lowest id wins a tie."""
    tiles = dim(arguments, SELECT.tile_max, 1)
    tile_max = operand(arguments, SELECT.tile_max, tl.float32) + logit_row * tiles
    tile_argmax = operand(arguments, SELECT.tile_argmax, tl.int32) + logit_row * tiles
    best = tl.full([CANDIDATES], float("-inf"), tl.float32)
    place = tl.zeros([CANDIDATES], tl.int32)
    for first in tl.range(0, tiles, CANDIDATES):
        j = first + tl.arange(0, CANDIDATES)
        value = tl.load(tile_max + j, mask=j < tiles, other=float("-inf"))
        place = tl.where(value > best, j, place)
        best = tl.where(value > best, value, best)
    winner = tl.min(tl.where(best == tl.max(best, axis=0), place, NO_TILE), axis=0)
    return tl.load(tile_argmax + winner)


@triton.jit
def is_stop(arguments, token):
    """1 if the token ends a request, else 0."""
    stop_ids, count = operand(arguments, SELECT.stop_ids, tl.int32), dim(arguments,
                                                                         SELECT.stop_ids, 0)
    stops = tl.zeros([STOP_IDS], tl.int32)
    for first in tl.range(0, count, STOP_IDS):
        k = first + tl.arange(0, STOP_IDS)
        stop_id = tl.load(stop_ids + k, mask=k < count, other=-1)
        stops += ((stop_id == token) & (k < count)).to(tl.int32)
    return tl.sum(stops, axis=0)


@triton.jit
def wanted_of(arguments, request, position):
    """What the request wants of its token for `position`."""
    max_context = dim(arguments, SELECT.token_ids, 1)
    return Wanted(
        operand(arguments, SELECT.sampling, tl.float32) + request * layout.SAMPLING_WORDS,
        operand(arguments, SELECT.processors, tl.int32) + request * layout.PROCESSORS_WORDS,
        operand(arguments, SELECT.biases, tl.int32),
        operand(arguments, SELECT.bias_prefixes, tl.int32),
        operand(arguments, SELECT.token_ids, tl.int32) + request * max_context, position,
        operand(arguments, SELECT.seed, tl.int64) + request)


@triton.jit
def choose_token(arguments, logit_row, request, position):
    """The token for `position`; records its log-probability where the request wants it."""
    vocab = dim(arguments, SELECT.logits, 1)
    logits = operand(arguments, SELECT.logits, tl.float32) + logit_row * vocab
    wanted = wanted_of(arguments, request, position)
    token = best_token(arguments, logit_row)
    if is_plain(wanted) == 0:
        scores = operand(arguments, SELECT.scores, tl.float32) + logit_row * 2 * vocab
        token = sample(logits, vocab, wanted, scores, scores + vocab)
    if tl.load(wanted.settings + layout.LOGPROBS) != 0:
        place = request * dim(arguments, SELECT.token_ids, 1) + position
        tl.store(operand(arguments, SELECT.token_logprob, tl.float32) + place,
                 logprob(logits, vocab, token))
    return token


@gpu_body(device_functions.select_token, configure=token_configuration)
@triton.jit(noinline=True)
def select_token(arguments, tile, step, CONFIG: tl.constexpr):
    """Appends the choice for one logit row to its request, unless that has finished; ends one whose
    logits are not finite."""
    logit_row = tile[0]
    row = logit_entry(arguments, SELECT.logit_row, step, logit_row, True)
    request = row_entry(arguments, SELECT.row_request, step, row, True)
    finished = operand(arguments, SELECT.finished, tl.int32) + request
    was_finished = tl.load(finished)
    position = row_entry(arguments, SELECT.row_position, step, row, True) + 1
    tl.debug_barrier()  # every thread has read what one thread is about to overwrite
    if was_finished != layout.RUNNING:
        pass
    elif has_finite_logits(arguments, logit_row) == 0:
        tl.store(finished, layout.NOT_FINITE)
    else:
        token = choose_token(arguments, logit_row, request, position)
        place = request * dim(arguments, SELECT.token_ids, 1) + position
        tl.store(operand(arguments, SELECT.token_ids, tl.int32) + place, token)
        time_place = request * dim(arguments, SELECT.token_time, 1) + position
        tl.store(operand(arguments, SELECT.token_time, tl.int64) + time_place,
                 globaltimer(CONFIG.interpreted))
        limit = tl.load(operand(arguments, SELECT.length_limit, tl.int32) + request)
        if (position + 1 >= limit) | (is_stop(arguments, token) != 0):
            tl.store(finished, layout.ENDED)
        row_position = operand(arguments, SELECT.row_position, tl.int32) + step[ROW_BASE] + row
        tl.store(row_position, position - 1 + step[ROW_ADVANCE])
        tl.debug_barrier()
        # release: a host that sees the new length also sees the token, its time and `finished`
        tl.atomic_xchg(operand(arguments, SELECT.length, tl.int32) + request,
                       position + 1, sem="release", scope="sys")
