"""Activations, offsets of norms and multipliers of every body, against torch and float64."""

import numpy as np
import pytest

pytest.importorskip("numba")

import torch
from body_references import (
    DTYPES,
    assert_close,
    ceil_div,
    linear_tiles,
    normal,
    rms_normed,
    roundings,
    run_all,
    spread_of,
    stored,
)

from persistent_runtime.functions import dense as df
from persistent_runtime.functions import experts as moe
from persistent_runtime.functions.activations import ACTIVATIONS

REFERENCES = {
    "silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu2": lambda x: torch.relu(x) ** 2}
EPS, OFFSET = 1e-5, 1.0
SHAPES = [(1, 64, 48, 1, 16), (5, 333, 37, 4, 10), (33, 100, 61, 32, 24)]


def act(name, values):
    return REFERENCES[name](torch.tensor(values, dtype=torch.float64)).numpy()


def test_every_activation_has_a_reference():
    assert set(REFERENCES) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_over_its_whole_range(name):
    """Gates that are a weight times one, ups of one: the activation itself comes out."""
    gates = np.concatenate([np.linspace(-30, 30, 4001), np.geomspace(1e-30, 1e3, 200),
                            -np.geomspace(1e-30, 1e3, 200), [0.0]]).astype(np.float32)
    count = len(gates)
    out = np.full((1, count), np.nan, np.float32)
    run_all(df.norm_gate_up, "float32", {
        "x": np.ones((1, 1), np.float32), "norm_weight": np.ones(1, np.float32),
        "gate_weight": gates[:, None].copy(), "up_weight": np.ones((count, 1), np.float32),
        "out": out, "eps": 0.0, "activation": ACTIVATIONS[name], "tile_m": 1, "tile_n": 512,
        "in_features": 1, "row_bytes": 4}, (1, ceil_div(count, 512)))
    expected = act(name, gates)
    error = np.abs(out[0] - expected)
    assert (error <= 5e-7 * np.abs(gates) * (1 + np.abs(gates))).all()
    large = np.abs(expected) > 1e-2 * np.abs(gates)
    assert (error[large] <= 1e-5 * np.abs(expected[large])).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_nan_stays_one(name):
    out = np.zeros((1, 2), np.float32)
    run_all(df.norm_gate_up, "float32", {
        "x": np.ones((1, 1), np.float32), "norm_weight": np.ones(1, np.float32),
        "gate_weight": np.array([[np.nan], [1]], np.float32),
        "up_weight": np.ones((2, 1), np.float32),
        "out": out, "eps": 0.0, "activation": ACTIVATIONS[name], "tile_m": 1, "tile_n": 2,
        "in_features": 1, "row_bytes": 4}, (1, 1))
    assert np.isnan(out[0, 0]) and not np.isnan(out[0, 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_norms_with_an_offset(dtype, shape):
    rng = np.random.default_rng(0)
    rows, in_features, out_features, *_ = shape
    parameters, counts = linear_tiles(shape)
    parameters |= {"eps": EPS, "norm_offset": OFFSET}
    x = normal(rng, rows, in_features)
    norm, norm_value = stored(0.1 * normal(rng, in_features), dtype)
    normed = rms_normed(x, norm_value + OFFSET, EPS)
    weight, value = stored(normal(rng, out_features, in_features), dtype)
    up, up_value = stored(normal(rng, out_features, in_features), dtype)
    rounding = roundings(dtype, shape)
    gate, product = normed @ value.T, normed @ up_value.T
    spread = spread_of(normed, value, rounding)

    out = np.full((rows, out_features), np.nan, np.float32)
    run_all(df.norm_linear, dtype, parameters | {
        "x": x, "norm_weight": norm, "weight": weight, "out": out}, counts)
    assert_close(out, gate, in_features, spread)

    run_all(df.norm_gate_up, dtype, parameters | {
        "x": x, "norm_weight": norm, "gate_weight": weight, "up_weight": up, "out": out,
        "activation": ACTIVATIONS["gelu_tanh"]}, counts)
    slope = 1.13  # of gelu, at most
    assert_close(out, act("gelu_tanh", gate) * product, 4 * in_features,
                 slope * np.abs(product) * spread
                 + np.abs(gate) * spread_of(normed, up_value, rounding))

    tiles = counts[1]
    run_all(df.norm_lm_head, dtype, parameters | {
        "x": x, "norm_weight": norm, "weight": weight, "logits": out,
        "logit_row": np.arange(rows, dtype=np.int32),
        "tile_max": np.zeros((rows, tiles), np.float32),
        "tile_argmax": np.zeros((rows, tiles), np.int32)}, counts)
    assert_close(out, gate, in_features)


@pytest.mark.parametrize("dtype", DTYPES)
def test_head_norms_with_an_offset(dtype):
    """Keys in the cache, rotated by nothing: cos is one."""
    rng = np.random.default_rng(1)
    rows, heads, head_dim, context = 3, 2, 20, 8
    k, v = (normal(rng, rows, heads * head_dim) for _ in "kv")
    norm, norm_value = stored(0.1 * normal(rng, head_dim), dtype)
    caches = [stored(np.zeros((1, heads, context, head_dim)), dtype)[0] for _ in "kv"]
    run_all(df.rope_append, dtype, {
        "k": k, "v": v, "k_norm": norm, "cos": np.ones((context, head_dim // 2), np.float32),
        "sin": np.zeros((context, head_dim // 2), np.float32),
        "row_request": np.zeros(rows, np.int32), "row_position": np.arange(rows, dtype=np.int32),
        "k_cache": caches[0], "v_cache": caches[1], "tile_m": 2, "head_dim": head_dim, "eps": EPS,
        "norm_offset": OFFSET}, (2, heads))
    normed = rms_normed(k.reshape(rows, heads, head_dim), norm_value + OFFSET, EPS)
    expected = stored(normed, dtype)[1].swapaxes(0, 1)
    kept = torch.tensor(caches[0] if dtype == "float32" else caches[0].view(np.int16))
    kept = kept if dtype == "float32" else kept.view(getattr(torch, dtype))
    np.testing.assert_allclose(kept.double().numpy()[0, :, :rows], expected,
                               rtol=1e-6 if dtype == "float32" else 2**-7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (150, 64, 48, 256, 16), (40, 8, 700, 40, 700)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_multiple_is_added_to_the_residual(dtype, shape, with_bias):
    rng = np.random.default_rng(2)
    rows, in_features, out_features, *_ = shape
    parameters, counts = linear_tiles(shape)
    x, before = normal(rng, rows, in_features), normal(rng, rows, out_features)
    weight, value = stored(normal(rng, out_features, in_features), dtype)
    bias, bias_value = stored(normal(rng, out_features), dtype)
    residual = before.copy()
    run_all(df.linear_residual, dtype, parameters | {
        "x": x, "weight": weight, "bias": bias if with_bias else None, "residual": residual,
        "multiplier": 0.22}, counts)
    factors = np.where(roundings(dtype, shape), stored(x, "bfloat16")[1], x.astype(np.float64))
    product = factors @ value.T + (bias_value if with_bias else 0)
    assert_close(residual, before + 0.22 * product, in_features)


def test_experts_are_gated_by_the_activation_and_added_by_the_multiplier():
    rng = np.random.default_rng(3)
    tile_m, in_features, inner_size = 2, 24, 10
    x, weight = normal(rng, 2 * tile_m, in_features), normal(rng, 2, 2 * inner_size, in_features)
    inner = np.full((2 * tile_m, inner_size), np.nan, np.float32)
    run_all(moe.expert_gate_up, "float32", {
        "grouped": x, "weight": weight, "tile_expert": np.array([1, 0], np.int32),
        "tile_rows": np.arange(4, dtype=np.int32).reshape(2, 2), "inner": inner, "tile_m": tile_m,
        "tile_n": 6, "in_features": in_features, "row_bytes": 4 * in_features,
        "activation": ACTIVATIONS["relu2"]}, (2, 2))
    products = np.concatenate([x[:2].astype(np.float64) @ weight[1].T,
                               x[2:].astype(np.float64) @ weight[0].T])
    gate, up = np.split(products, 2, axis=1)
    assert_close(inner, act("relu2", gate) * up, 4 * in_features)

    norm, grouped = normal(rng, in_features), np.zeros((2, in_features), np.float32)
    run_all(moe.group_rows, "float32", {
        "x": x[:2], "norm_weight": norm, "topk_ids": np.zeros((2, 1), np.int32),
        "place": np.array([[1], [0]], np.int32), "grouped": grouped, "hidden_size": in_features,
        "eps": EPS, "norm_offset": OFFSET}, (2, 1))
    assert_close(grouped[::-1], rms_normed(x[:2], norm + np.float64(OFFSET), EPS), in_features)

    before = normal(rng, 2, in_features)
    residual = before.copy()
    run_all(moe.combine_experts, "float32", {
        "topk_weights": np.array([[0.75, 0.25]] * 2, np.float32),
        "place": np.array([[0, 2], [1, 3]], np.int32), "expert_out": x, "residual": residual,
        "hidden_size": in_features, "top_k": 2, "multiplier": 0.5}, (2,))
    assert_close(residual, before + 0.5 * (0.75 * x[:2] + 0.25 * x[2:]), 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embeddings_are_multiplied(dtype):
    table, value = stored(normal(np.random.default_rng(4), 7, 30), dtype)
    out = np.full((2, 30), np.nan, np.float32)
    run_all(df.embed_tokens, dtype, {
        "token_ids": np.array([[3, 6]], np.int32), "row_request": np.zeros(2, np.int32),
        "row_position": np.array([0, 1], np.int32), "weight": table, "out": out, "tile_m": 2,
        "hidden_size": 30, "multiplier": 30**0.5}, (1,))
    np.testing.assert_array_equal(out, value[[3, 6]].astype(np.float32) * np.float32(30**0.5))
