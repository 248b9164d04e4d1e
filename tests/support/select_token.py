"""Runs select_token alone, on logits that a test brings."""

import os

import numpy as np

from frontend.config.sampling import Sampling
from frontend.decode.control import sampling_record
from frontend.decode.processors import BiasList, processors_record
from persistent_runtime.cpu.single_tile import run_tile, run_tiles
from persistent_runtime.functions import dense as df
from persistent_runtime.rows import layout

CAPACITY = 64
SPARE_BIAS = np.zeros((1, layout.BIAS_WORDS), np.int32)  # an array without elements has no address
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def select(logits, seed=0, **options):
    """(token, processed logits, log-probability); options as in `operands_of`."""
    values = operands_of(logits, [seed], **options)
    run_tile(df.select_token, "float32", values, (0,), df.SAMPLING_SCRATCH)
    position = values["row_position"][0] + 1
    return (int(values["token_ids"][0, position]), values["scores"][0, 0],
            float(values["token_logprob"][0, position]))


def select_many(logits, seeds, **options):
    """The token for each seed: [seeds]."""
    values = operands_of(logits, list(seeds), **options)
    tiles = [(k,) for k in range(len(seeds))]
    if INTERPRETED:
        for tile in tiles:
            run_tile(df.select_token, "float32", values, tile, df.SAMPLING_SCRATCH)
    else:
        run_tiles(df.select_token, "float32", values, tiles, df.SAMPLING_SCRATCH)
    return values["token_ids"][:, values["row_position"][0] + 1]


def operands_of(logits, seeds, history=(3,), logprobs=False, end_ids=(), prompt_tokens=None,
                **settings):
    """Operands for the position after `history`, whose first `prompt_tokens`, by default all, were
    the prompt; a row and a request for each seed. settings: fields of Sampling."""
    rows, vocab = len(seeds), len(logits)
    sampling = Sampling(logprobs=logprobs, **settings)
    biases = BiasList.of(sampling, end_ids, vocab)
    record = processors_record(biases, sampling, prompt_tokens or len(history))
    logits = np.asarray(logits, np.float32)
    token_ids = np.zeros((rows, CAPACITY), np.int32)
    token_ids[:, :len(history)] = history
    best = np.nanmax(logits) if np.isfinite(logits).any() else -np.inf
    return {
        "tile_max": np.full((rows, 1), best, np.float32),
        "tile_argmax": np.full((rows, 1), int(np.argmax(logits == best)), np.int32),
        "logits": np.tile(logits, (rows, 1)),
        "scores": np.full((rows, 2, vocab), np.nan, np.float32),
        "sampling": np.tile(sampling_record(sampling), (rows, 1)),
        "seed": np.array(seeds, np.int64), "processors": np.tile(record, (rows, 1)),
        "biases": np.concatenate([biases.biases, SPARE_BIAS]),
        "bias_prefixes": np.append(biases.prefixes, 0).astype(np.int32),
        "logit_row": np.arange(rows, dtype=np.int32),
        "row_request": np.arange(rows, dtype=np.int32),
        "row_position": np.full(rows, len(history) - 1, np.int32), "token_ids": token_ids,
        "token_time": np.zeros((rows, CAPACITY), np.int64),
        "token_logprob": np.zeros((rows, CAPACITY), np.float32),
        "stop_ids": np.array([-1], np.int32), "length_limit": np.full(rows, CAPACITY, np.int32),
        "length": np.zeros(rows, np.int32), "finished": np.zeros(rows, np.int32)}
