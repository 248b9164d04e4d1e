"""CPU bodies against float64 references: storage types, odd shapes, ragged tiles. Those of
attention are in test_cpu_attention.py."""

import time

import numpy as np
import pytest

pytest.importorskip("numba")

from body_references import (
    DTYPES,
    SHAPES,
    assert_close,
    ceil_div,
    from_storage,
    greedy_requests,
    linear_tiles,
    normal,
    rms_normed,
    roundings,
    run_all,
    spread_of,
    stored,
)
from cases import pairs, turns

from persistent_runtime.functions import dense as df
from persistent_runtime.rows import layout


@pytest.mark.parametrize("dtype, shape, with_bias",
                         pairs(DTYPES, SHAPES, [False, True], only_interpreted=True))
def test_linear(dtype, shape, with_bias):
    rng = np.random.default_rng(0)
    rows, in_features, out_features, *_ = shape
    parameters, counts = linear_tiles(shape)
    x = normal(rng, rows, in_features)
    weight, weight_value = stored(normal(rng, out_features, in_features), dtype)
    norm, norm_value = stored(1 + 0.1 * normal(rng, in_features), dtype)
    bias, bias_value = stored(normal(rng, out_features), dtype)
    bias_value = bias_value if with_bias else 0
    values = {"x": x, "weight": weight, "bias": bias if with_bias else None} | parameters

    out = np.full((rows, out_features), np.nan, np.float32)
    run_all(df.norm_linear, dtype, values | {"norm_weight": norm, "out": out, "eps": 1e-6}, counts)
    rounding, normed = roundings(dtype, shape), rms_normed(x, norm_value, 1e-6)
    assert_close(out, normed @ weight_value.T + bias_value, in_features,
                 spread_of(normed, weight_value, rounding))

    before = normal(rng, rows, out_features)
    residual = before.copy()
    run_all(df.linear_residual, dtype, values | {"residual": residual}, counts)
    factors = np.where(rounding, stored(x, "bfloat16")[1], x.astype(np.float64))
    assert_close(residual, before + factors @ weight_value.T + bias_value, in_features)


@pytest.mark.parametrize("dtype, shape, with_bias", turns(
    DTYPES, [*SHAPES, (33, 20, 150, 64, 150)], [False, True], only_interpreted=True))
def test_gate_up_silu(dtype, shape, with_bias):
    rng = np.random.default_rng(1)
    rows, in_features, out_features, *_ = shape
    parameters, counts = linear_tiles(shape)
    x = normal(rng, rows, in_features)
    norm, norm_value = stored(1 + 0.1 * normal(rng, in_features), dtype)
    gate, gate_value = stored(normal(rng, out_features, in_features), dtype)
    up, up_value = stored(normal(rng, out_features, in_features), dtype)
    biases = [stored(normal(rng, out_features), dtype) for _ in range(2)]
    out = np.full((rows, out_features), np.nan, np.float32)
    values = {"x": x, "norm_weight": norm, "gate_weight": gate, "up_weight": up, "out": out,
              "eps": 1e-5} | parameters
    if with_bias:
        values |= {"gate_bias": biases[0][0], "up_bias": biases[1][0]}
    run_all(df.norm_gate_up, dtype, values, counts)
    normed = rms_normed(x, norm_value, 1e-5)
    g = normed @ gate_value.T + (biases[0][1] if with_bias else 0)
    u = normed @ up_value.T + (biases[1][1] if with_bias else 0)
    rounding, gate_share = roundings(dtype, shape), 1 / (1 + np.exp(-g))
    slope = gate_share * (1 + g * (1 - gate_share))  # of silu
    spread = (np.abs(u * slope) * spread_of(normed, gate_value, rounding)
              + np.abs(g * gate_share) * spread_of(normed, up_value, rounding))
    assert_close(out, gate_share * g * u, 4 * in_features, spread)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logit_rows, tile_m", [(1, 1), (3, 2)])
def test_lm_head_and_select_token(dtype, logit_rows, tile_m):
    rng = np.random.default_rng(2)
    tokens, hidden, vocab, tile_n, max_context = 5, 72, 1013, 100, 16
    x = normal(rng, tokens, hidden)
    norm, norm_value = stored(1 + 0.1 * normal(rng, hidden), dtype)
    weight, _ = stored(normal(rng, vocab, hidden), dtype)
    tied = np.arange(7, vocab, 13)
    weight[tied] = weight[7]  # equal logits: the lowest id must win wherever they are best
    weight_value = from_storage(weight, dtype)
    tiles = ceil_div(vocab, tile_n)
    logit_row = np.array([99, 99, 4, 0, 2], np.int32)  # two entries before this step's
    step = {layout.LOGIT_BASE: 2, layout.ROW_BASE: 3, layout.ROW_ADVANCE: 1}
    logits = np.full((logit_rows, vocab), np.nan, np.float32)
    tile_max = np.empty((logit_rows, tiles), np.float32)
    tile_argmax = np.empty((logit_rows, tiles), np.int32)
    run_all(df.norm_lm_head, dtype, {
        "x": x, "logit_row": logit_row, "norm_weight": norm, "weight": weight, "logits": logits,
        "tile_max": tile_max, "tile_argmax": tile_argmax, "tile_m": tile_m, "tile_n": tile_n,
        "in_features": hidden, "row_bytes": 2 * hidden, "eps": 1e-6,
    }, (ceil_div(logit_rows, tile_m), tiles), step)
    rows = logit_row[2:2 + logit_rows]
    assert_close(logits, rms_normed(x[rows], norm_value, 1e-6) @ weight_value.T, hidden)
    for j in range(tiles):
        part = logits[:, j * tile_n:(j + 1) * tile_n]
        np.testing.assert_array_equal(tile_max[:, j], part.max(1))
        np.testing.assert_array_equal(tile_argmax[:, j], part.argmax(1) + j * tile_n)

    row_request = np.array([9, 9, 9, 3, 0, 1, 0, 2], np.int32)
    row_position = np.array([99, 99, 99, 4, 0, 5, 0, 6], np.int32)
    state = {"token_ids": np.zeros((4, max_context), np.int32),
             "token_time": np.zeros((4, max_context), np.int64),
             "stop_ids": np.array([vocab], np.int32),
             "length_limit": np.full(4, max_context, np.int32),
             "length": np.zeros(4, np.int32), "finished": np.zeros(4, np.int32)}
    positions_before = row_position.copy()
    earliest = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    run_all(df.select_token, dtype, state | greedy_requests(
        4, vocab, max_context, logit_rows) | {
        "tile_max": tile_max, "tile_argmax": tile_argmax, "logit_row": logit_row,
        "row_request": row_request, "row_position": row_position}, (logit_rows,), step)
    latest = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    for answer, row in enumerate(rows):
        request, position = row_request[3 + row], positions_before[3 + row] + 1
        assert state["token_ids"][request, position] == logits[answer].argmax()
        assert earliest <= state["token_time"][request, position] <= latest
        assert state["length"][request] == position + 1
        assert row_position[3 + row] == position
    assert not state["finished"].any()


@pytest.mark.parametrize("stop, limit, already, finished", [
    ([5], 100, 0, 1), ([6, 5], 100, 0, 1), ([6], 100, 0, 0), ([6], 9, 0, 1), ([6], 10, 0, 0),
    ([], 100, 0, 0), ([5], 100, 1, 1)])
def test_select_token_ends_a_request(stop, limit, already, finished):
    stop_ids = np.array(stop, np.int32)
    length, done = np.array([8], np.int32), np.array([already], np.int32)
    token_ids, row_position = np.zeros((1, 16), np.int32), np.array([7], np.int32)
    run_all(df.select_token, "bfloat16", greedy_requests(1, 10) | {
        "tile_max": np.array([[1.0, 3.0, 3.0]], np.float32),
        "tile_argmax": np.array([[0, 5, 9]], np.int32), "logit_row": np.zeros(1, np.int32),
        "row_request": np.zeros(1, np.int32), "row_position": row_position,
        "token_ids": token_ids, "token_time": np.zeros((1, 16), np.int64), "stop_ids": stop_ids,
        "length_limit": np.array([limit], np.int32), "length": length, "finished": done,
    }, (1,), {layout.ROW_ADVANCE: 1})
    assert done[0] == finished
    assert (token_ids[0, 8], length[0], row_position[0]) == ((0, 8, 7) if already else (5, 9, 8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_embed_tokens(dtype):
    rng = np.random.default_rng(3)
    weight, value = stored(normal(rng, 50, 37), dtype)
    token_ids = rng.integers(0, 50, (3, 9)).astype(np.int32)
    row_request = np.array([0, 2, 0, 1, 2], np.int32)
    row_position = np.array([0, 8, 3, 4, 0], np.int32)
    out = np.empty((4, 37), np.float32)
    run_all(df.embed_tokens, dtype, {
        "token_ids": token_ids, "row_request": row_request, "row_position": row_position,
        "weight": weight, "out": out, "tile_m": 3, "hidden_size": 37}, (2,), {layout.ROW_BASE: 1})
    np.testing.assert_array_equal(out, value[token_ids[row_request, row_position]][1:])
