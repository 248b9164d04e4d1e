"""Every CPU body against float64 references: storage types, odd shapes, ragged tiles."""

import time

import numpy as np
import pytest

pytest.importorskip("numba")

import torch

from persistent_runtime import formats
from persistent_runtime.cpu.bodies.linear import ROUNDED_ROWS
from persistent_runtime.cpu.single_tile import run_tile
from persistent_runtime.cpu.vectors.emit import CONVERTS_FLOAT16, DOTS_BFLOAT16
from persistent_runtime.functions import dense as df
from persistent_runtime.rows import layout

DTYPES = [dtype for dtype in formats.DTYPES if dtype != "float16" or CONVERTS_FLOAT16]
TORCH = {name: getattr(torch, name) for name in DTYPES}
# the relative spacing of each type, for results that are stored in it
SPACING = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}


def stored(values, dtype):
    """(array as bodies read it, the same values in float64)"""
    rounded = torch.tensor(np.asarray(values, np.float32)).to(TORCH[dtype])
    as_read = {"float32": rounded, "bfloat16": rounded.view(torch.uint16),
               "float16": rounded.view(torch.int16)}[dtype]
    return as_read.numpy().copy(), rounded.double().numpy()


def from_storage(array, dtype):
    tensor = torch.tensor(array.view(np.int16) if dtype != "float32" else array)
    return (tensor if dtype == "float32" else tensor.view(TORCH[dtype])).double().numpy()


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def rms_normed(x, weight, eps):
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


ROUNDING = 2e-7  # of one operation, relative


def assert_close(actual, expected, terms, spread=0):
    """Float32 sums of `terms` products: a few units in the last place of their magnitude, and five
    times the standard deviation `spread` that rounded factors give each sum."""
    scale = np.abs(expected).max() + 1e-30
    error, bound = np.abs(actual - expected), scale * ROUNDING * (4 + terms**0.5) + 5 * spread
    assert (error <= bound).all(), f"{(error / bound).max()} times the bound"


def roundings(dtype, shape):
    """[rows, 1]: the largest relative error of x in a product; not 0 for many rows of a tile on a
    CPU that multiplies bfloat16. The bodies of GPUs, which run here as well, do not round."""
    rows, *_, tile_m, _ = shape
    of_tile = np.minimum(tile_m, rows - np.arange(rows) // tile_m * tile_m)[:, None]
    rounds = DOTS_BFLOAT16 and dtype == "bfloat16" and ".cpu." in run_tile.__module__
    return (of_tile >= ROUNDED_ROWS) * rounds * 2.0**-8


def spread_of(x, weight, rounding):
    """Standard deviation of x @ weight.T if each x has an error of up to `rounding`, at random."""
    return rounding / 3**0.5 * np.sqrt(x**2 @ (weight**2).T)


def run_all(declaration, dtype, values, counts, step=None):
    scratch_bytes = declaration.scratch_bytes.evaluate(
        {name: values[name] for name in declaration.scratch_bytes.symbols()})
    for tile in np.ndindex(*counts):
        run_tile(declaration, dtype, values, tile, scratch_bytes, step)


def ceil_div(a, b):
    return -(-a // b)


# (rows, in_features, out_features, tile_m, tile_n)
SHAPES = [(1, 64, 48, 1, 16), (1, 333, 37, 4, 10), (33, 100, 61, 32, 24), (33, 256, 64, 8, 64),
          (7, 19, 5, 16, 3), (64, 128, 130, 64, 64), (150, 64, 48, 256, 16)]


def linear_tiles(shape):
    rows, in_features, out_features, tile_m, tile_n = shape
    parameters = {"tile_m": tile_m, "tile_n": tile_n, "in_features": in_features,
                  "row_bytes": 2 * in_features}
    return parameters, (ceil_div(rows, tile_m), ceil_div(out_features, tile_n))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (33, 20, 150, 64, 150)])
@pytest.mark.parametrize("with_bias", [False, True])
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


def greedy_requests(requests, vocab, max_context=16, logit_rows=1):
    """Operands of select_token that greedy requests without log-probabilities leave alone."""
    sampling = np.zeros((requests, layout.SAMPLING_WORDS), np.float32)
    sampling[:, layout.TOP_P] = sampling[:, layout.REPETITION_PENALTY] = 1
    return {"logits": np.full((logit_rows, vocab), np.nan, np.float32),
            "scores": np.zeros((logit_rows, 2, vocab), np.float32), "sampling": sampling,
            "seed": np.zeros(requests, np.int64),
            "processors": np.zeros((requests, layout.PROCESSORS_WORDS), np.int32),
            "biases": np.zeros((1, layout.BIAS_WORDS), np.int32),
            "bias_prefixes": np.zeros(1, np.int32),
            "token_logprob": np.zeros((requests, max_context), np.float32)}


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


EPS = 1e-6


class Rope:
    """Rotary tables and norms of heads, and what they make of heads."""

    def __init__(self, rng, dtype, head_dim, max_context, with_norm):
        angles = rng.uniform(0, 6, (max_context, head_dim // 2))
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        self.with_norm = with_norm
        (q_norm, self.q_scale), (k_norm, self.k_scale) = (
            stored(1 + 0.1 * normal(rng, head_dim), dtype) for _ in range(2))
        self.operands = {"q_norm": q_norm if with_norm else None,
                         "k_norm": k_norm if with_norm else None, "cos": self.cos,
                         "sin": self.sin, "eps": EPS}

    def rotated(self, x, scale, positions):
        """x: [rows, heads, head_dim]"""
        x = rms_normed(x, scale, EPS) if self.with_norm else x.astype(np.float64)
        a, b = np.split(x, 2, axis=-1)
        c, s = (table[positions][:, None].astype(np.float64) for table in (self.cos, self.sin))
        return np.concatenate([a * c - b * s, b * c + a * s], -1)


def without(operands, *names):
    return {name: value for name, value in operands.items() if name not in names}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 128, 36])
@pytest.mark.parametrize("with_norm", [False, True])
def test_rope_append(dtype, head_dim, with_norm):
    rng = np.random.default_rng(4)
    rows, requests, kv_heads, max_context = 5, 3, 2, 11
    rope = Rope(rng, dtype, head_dim, max_context, with_norm)
    k, v = normal(rng, rows, kv_heads, head_dim), normal(rng, rows, kv_heads, head_dim)
    row_request = np.array([9, 0, 0, 2, 1, 2], np.int32)
    row_position = np.array([99, 3, 4, 10, 0, 7], np.int32)
    at = row_position[1:]
    caches = [stored(np.zeros((requests, kv_heads, max_context, head_dim)), dtype)[0]
              for _ in range(2)]
    run_all(df.rope_append, dtype, without(rope.operands, "q_norm") | {
        "k": k.reshape(rows, -1), "v": v.reshape(rows, -1), "row_request": row_request,
        "row_position": row_position, "k_cache": caches[0], "v_cache": caches[1], "tile_m": 2,
        "head_dim": head_dim}, (3, kv_heads), {layout.ROW_BASE: 1})
    spacing = SPACING[dtype]
    kept_k, kept_v = (from_storage(c, dtype)[row_request[1:], :, at] for c in caches)
    np.testing.assert_allclose(kept_k, rope.rotated(k, rope.k_scale, at), rtol=spacing, atol=2e-6)
    np.testing.assert_array_equal(kept_v, stored(v, dtype)[1])
    assert np.count_nonzero(from_storage(caches[0], dtype).any(-1)) == rows * kv_heads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim, group_heads, kv_splits, window, longest", [
    (64, 1, 1, 0, 150), (80, 4, 3, 0, 200), (128, 7, 2, 0, 70), (128, 2, 5, 40, 200),
    (64, 4, 8, 3, 20), (36, 3, 2, 0, 100)])
@pytest.mark.parametrize("tile_m", [1, 4])
@pytest.mark.parametrize("rows_are_apart", [False, True])
def test_attention(dtype, head_dim, group_heads, kv_splits, window, longest, tile_m,
                   rows_are_apart):
    rng = np.random.default_rng(5)
    kv_heads = 2
    if rows_are_apart:  # decoding: each row of a request of its own
        row_request = np.array([9, 3, 0, 2, 1, 4], np.int32)
        row_position = np.array([99, longest - 1, 0, longest // 2, 1, 2], np.int32)
    else:  # three neighbours of one request as in prefill, then rows of other requests
        row_request = np.array([9, 0, 0, 0, 2, 1, 2], np.int32)
        row_position = np.array([99, longest - 3, longest - 2, longest - 1, 0, longest // 2, 1],
                                np.int32)
    at, of_row = row_position[1:], row_request[1:]
    rows, heads, requests = len(at), kv_heads * group_heads, 5
    rope = Rope(rng, dtype, head_dim, longest, with_norm=window == 0)
    q = 2 * normal(rng, rows, heads, head_dim)
    k, v = (normal(rng, rows, kv_heads, head_dim) for _ in range(2))
    k_cache, v_cache = (stored(normal(rng, requests, kv_heads, longest, head_dim), dtype)[0]
                        for _ in range(2))
    places = {"row_request": row_request, "row_position": row_position}
    own = {"k": None, "v": None}
    kept = {"k_cache": k_cache.copy(), "v_cache": v_cache.copy()}
    if rows_are_apart:
        own = {"k": k.reshape(rows, -1), "v": v.reshape(rows, -1)}
        run_all(df.rope_append, dtype, without(rope.operands, "q_norm") | own | kept | places | {
            "tile_m": rows, "head_dim": head_dim}, (1, kv_heads), {layout.ROW_BASE: 1})
        for cache in (k_cache, v_cache):  # not yet there
            cache[of_row, :, at] = stored(np.full(head_dim, np.nan), dtype)[0]
    k_value, v_value = (from_storage(cache, dtype) for cache in kept.values())
    scale = head_dim**-0.5
    partial = np.full((rows, kv_splits, heads * head_dim), np.nan, np.float32)
    stats = np.full((rows, kv_splits, heads * 2), np.nan, np.float32)
    common = {"tile_m": tile_m, "head_dim": head_dim, "group_heads": group_heads,
              "group_width": group_heads * head_dim, "kv_splits": kv_splits}
    tiles = ceil_div(rows, tile_m)
    run_all(df.attention, dtype, rope.operands | own | places | common | {
        "q": q.reshape(rows, -1), "k_cache": k_cache, "v_cache": v_cache, "partial": partial,
        "stats": stats, "window": window, "scale": scale, "kv_row_bytes": 2 * head_dim,
        "context": longest},
        (tiles, kv_heads, kv_splits), {layout.ROW_BASE: 1})
    out = np.full((rows, heads * head_dim), np.nan, np.float32)
    run_all(df.attention_combine, dtype, {"partial": partial, "stats": stats, "out": out} | common,
            (tiles, kv_heads))

    q = rope.rotated(q, rope.q_scale, at)
    for row, (request, position) in enumerate(zip(of_row, at, strict=True)):
        begin = max(0, position - window + 1) if window else 0
        for head in range(heads):
            keys = k_value[request, head // group_heads, begin:position + 1]
            scores = keys @ q[row, head] * scale
            weights = np.exp(scores - scores.max())
            expected = weights @ v_value[request, head // group_heads, begin:position + 1]
            actual = out.reshape(rows, heads, head_dim)[row, head]
            assert_close(actual, expected / weights.sum(), head_dim)
        piece = ceil_div(position + 1 - begin, kv_splits)
        for split in range(kv_splits):
            if begin + split * piece > position:
                maxima, sums = stats[row, split, ::2], stats[row, split, 1::2]
                assert (maxima == -np.inf).all() and not sums.any()
                assert not partial[row, split].any()
