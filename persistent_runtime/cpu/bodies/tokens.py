"""Bodies at both ends of a step: token ids to rows, logits to the next token."""

from __future__ import annotations

import numpy as np

from persistent_runtime.cpu.bodies.arguments import (
    FLOAT32,
    INT32,
    INT64,
    dim,
    float_parameter,
    logit_entry,
    operand,
    record_offsets,
    row_entry,
    tile_range,
    weight_row,
)
from persistent_runtime.cpu.bodies.processors import Wanted, is_plain
from persistent_runtime.cpu.bodies.sampling import logprob, sample
from persistent_runtime.cpu.compile.registry import cpu_body
from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.blocks import widen_row
from persistent_runtime.cpu.vectors.intrinsics import (
    address_of,
    advance,
    monotonic_ns,
    store_release,
)
from persistent_runtime.cpu.vectors.numerics import ONE, ZERO
from persistent_runtime.functions import dense as device_functions
from persistent_runtime.rows import layout

EMBED = record_offsets(device_functions.embed_tokens)
SELECT = record_offsets(device_functions.select_token)


@cpu_body(device_functions.embed_tokens)
def embed_tokens(arguments, tile, step, scratch, formats):  # noqa: ANN201
    """out[r] = weight[token_ids[request of r, position of r]] * multiplier"""
    hidden_size, max_context = arguments[EMBED.hidden_size], dim(arguments, EMBED.token_ids, 1)
    first, last = tile_range(tile[0], arguments[EMBED.tile_m], dim(arguments, EMBED.out, 0))
    token_ids = operand(arguments, EMBED.token_ids, INT32)
    multiplier = float_parameter(arguments, EMBED.multiplier)
    for row in range(first, last):
        request = row_entry(arguments, EMBED.row_request, step, row)
        position = row_entry(arguments, EMBED.row_position, step, row)
        token = np.int64(token_ids[request * max_context + position])
        out = advance(operand(arguments, EMBED.out, FLOAT32), row * hidden_size)
        widen_row(weight_row(arguments, EMBED.weight, token, hidden_size, formats.weight),
                  hidden_size, out)
        if multiplier != ONE:
            for k in range(hidden_size):
                out[k] *= multiplier


@device_jit
def has_finite_logits(arguments, logit_row):
    """Whether no tile met a logit that is NaN or infinite: its maximum is NaN then."""
    tiles = dim(arguments, SELECT.tile_max, 1)
    tile_max = advance(operand(arguments, SELECT.tile_max, FLOAT32), logit_row * tiles)
    for j in range(tiles):
        if tile_max[j] != tile_max[j]:
            return False
    return True


@device_jit
def best_token(arguments, logit_row):
    """The token of the largest tile maximum; tiles ascend, so the lowest id wins a tie."""
    tiles = dim(arguments, SELECT.tile_max, 1)
    tile_max = advance(operand(arguments, SELECT.tile_max, FLOAT32), logit_row * tiles)
    tile_argmax = advance(operand(arguments, SELECT.tile_argmax, INT32), logit_row * tiles)
    best = 0
    for j in range(1, tiles):
        if tile_max[j] > tile_max[best]:
            best = j
    return tile_argmax[best]


@device_jit
def is_stop(arguments, token):
    stop_ids = operand(arguments, SELECT.stop_ids, INT32)
    for k in range(dim(arguments, SELECT.stop_ids, 0)):
        if stop_ids[k] == token:
            return True
    return False


@device_jit
def wanted_of(arguments, request, position):
    """What the request wants of its token for `position`."""
    max_context = dim(arguments, SELECT.token_ids, 1)
    return Wanted(
        advance(operand(arguments, SELECT.sampling, FLOAT32), request * layout.SAMPLING_WORDS),
        advance(operand(arguments, SELECT.processors, INT32), request * layout.PROCESSORS_WORDS),
        operand(arguments, SELECT.biases, INT32), operand(arguments, SELECT.bias_prefixes, INT32),
        advance(operand(arguments, SELECT.token_ids, INT32), request * max_context), position,
        operand(arguments, SELECT.seed, INT64)[request])


@device_jit
def choose_token(arguments, logit_row, request, position, scratch):
    """The token for `position`; records its log-probability where the request wants it."""
    vocab = dim(arguments, SELECT.logits, 1)
    logits = advance(operand(arguments, SELECT.logits, FLOAT32), logit_row * vocab)
    wanted = wanted_of(arguments, request, position)
    if is_plain(wanted):
        token = np.int64(best_token(arguments, logit_row))
    else:
        scores = advance(operand(arguments, SELECT.scores, FLOAT32), logit_row * 2 * vocab)
        token = sample(logits, vocab, wanted, scores, advance(scores, vocab), scratch)
    if wanted.settings[layout.LOGPROBS] != ZERO:
        place = request * dim(arguments, SELECT.token_ids, 1) + position
        operand(arguments, SELECT.token_logprob, FLOAT32)[place] = logprob(logits, vocab, token)
    return token


@cpu_body(device_functions.select_token)
def select_token(arguments, tile, step, scratch, formats):
    """Appends the choice for one logit row to its request, unless that has finished; ends one whose
    logits are not finite."""
    logit_row = np.int64(tile[0])
    row = logit_entry(arguments, SELECT.logit_row, step, logit_row)
    request = row_entry(arguments, SELECT.row_request, step, row)
    finished = operand(arguments, SELECT.finished, INT32)
    if finished[request] != layout.RUNNING:
        return
    if not has_finite_logits(arguments, logit_row):
        finished[request] = layout.NOT_FINITE
        return
    position = row_entry(arguments, SELECT.row_position, step, row) + 1
    token = choose_token(arguments, logit_row, request, position, scratch)
    place = request * dim(arguments, SELECT.token_ids, 1) + position
    operand(arguments, SELECT.token_ids, INT32)[place] = token
    time_place = request * dim(arguments, SELECT.token_time, 1) + position
    operand(arguments, SELECT.token_time, INT64)[time_place] = monotonic_ns()
    limit = operand(arguments, SELECT.length_limit, INT32)[request]
    if position + 1 >= limit or is_stop(arguments, token):
        finished[request] = layout.ENDED
    row_position = operand(arguments, SELECT.row_position, INT32)
    row_position[step[layout.ROW_BASE] + row] += step[layout.ROW_ADVANCE]
    # release: a host thread that sees the new length also sees the token, its time and `finished`
    length = advance(operand(arguments, SELECT.length, INT32), request)
    store_release(address_of(length), np.int32(position + 1))
