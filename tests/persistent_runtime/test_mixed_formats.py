"""Bodies whose operands have different formats, blocks among them, against float64 references.

The interpreter runs this file as well, with the GPU's bodies.
"""

import sys

import numpy as np
import pytest

pytest.importorskip("numba")

import block_formats
from body_references import (
    DTYPES,
    Rope,
    assert_close,
    ceil_div,
    from_storage,
    linear_tiles,
    normal,
    rms_normed,
    run_all,
    stored,
    without,
)

from persistent_runtime.cpu.single_tile import run_tile  # noqa: F401 (the interpreter's place)
from persistent_runtime.functions import dense as df
from persistent_runtime.functions import experts as moe
from persistent_runtime.rows import layout

if "triton" in sys.modules:
    block_formats.register_gpu_loader()

HALF = DTYPES[-1]  # float16 where the processor converts it
PLACES = {"row_request": np.array([9, 1, 0], np.int32),
          "row_position": np.array([99, 2, 6], np.int32)}
# rows, in_features, out_features, tile_m, tile_n
SHAPES = [(1, 96, 37, 4, 10), (9, 64, 48, 8, 16), (33, 128, 61, 32, 24)]


def weight_as(rng, format_name, *shape):
    """(weight as bodies read it, its values)"""
    if format_name == block_formats.FOUR_BITS.name:
        rows = block_formats.random_rows(rng, *shape)
        return rows, block_formats.dequantize(rows).astype(np.float64)
    return stored(normal(rng, *shape), format_name)


@pytest.mark.parametrize("matrix, vector", [("bfloat16", "float32"), (HALF, "float32"),
                                            ("float32", "bfloat16"), ("four_bits", "float32"),
                                            ("four_bits", "bfloat16")])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_products(matrix, vector, shape):
    """Fewer rows than a CPU rounds to bfloat16."""
    rng = np.random.default_rng(0)
    rows, in_features, out_features, *_ = shape
    parameters, counts = linear_tiles(shape)
    x = normal(rng, rows, in_features)
    weight, weight_value = weight_as(rng, matrix, out_features, in_features)
    norm, norm_value = stored(1 + 0.1 * normal(rng, in_features), vector)
    bias, bias_value = stored(normal(rng, out_features), vector)
    formats = {"weight": matrix, "norm_weight": vector, "bias": vector}
    out = np.full((rows, out_features), np.nan, np.float32)
    run_all(df.norm_linear, formats, parameters | {
        "x": x, "weight": weight, "bias": bias, "norm_weight": norm, "out": out, "eps": 1e-6},
        counts)
    assert_close(out, rms_normed(x, norm_value, 1e-6) @ weight_value.T + bias_value, in_features)

    before = normal(rng, rows, out_features)
    residual = before.copy()
    run_all(df.linear_residual, formats, parameters | {
        "x": x, "weight": weight, "bias": bias, "residual": residual}, counts)
    assert_close(residual, before + x.astype(np.float64) @ weight_value.T + bias_value, in_features)


@pytest.mark.parametrize("gate_format, up_format", [("bfloat16", "float32"), (HALF, "bfloat16"),
                                                    ("four_bits", "bfloat16"),
                                                    ("four_bits", "four_bits")])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_gate_and_what_it_lets_through(gate_format, up_format, shape):
    """Of many rows too: x is rounded only beside two matrices of bfloat16."""
    rng = np.random.default_rng(1)
    rows, in_features, out_features, *_ = shape
    parameters, counts = linear_tiles(shape)
    x = normal(rng, rows, in_features)
    gate, gate_value = weight_as(rng, gate_format, out_features, in_features)
    up, up_value = weight_as(rng, up_format, out_features, in_features)
    norm, bias = 1 + 0.1 * normal(rng, in_features), normal(rng, out_features)
    out = np.full((rows, out_features), np.nan, np.float32)
    formats = {"gate_weight": gate_format, "up_weight": up_format}
    run_all(df.norm_gate_up, formats, parameters | {
        "x": x, "norm_weight": norm, "gate_weight": gate, "up_weight": up, "up_bias": bias,
        "out": out, "eps": 1e-5}, counts)
    normed = rms_normed(x, norm, 1e-5)
    g, u = normed @ gate_value.T, normed @ up_value.T + bias
    assert_close(out, g / (1 + np.exp(-g)) * u, 4 * in_features)


@pytest.mark.parametrize("matrix", ["bfloat16", "four_bits"])
def test_experts(matrix):
    rng = np.random.default_rng(2)
    experts, in_features, out_features, tile_m, tile_n = 3, 64, 20, 4, 8
    weight, value = weight_as(rng, matrix, experts, out_features, in_features)
    x = normal(rng, 2 * tile_m, in_features)
    tile_expert, tile_rows = np.array([2, 0], np.int32), np.full((2, tile_m), -1, np.int32)
    tile_rows[0, :3], tile_rows[1, 0] = range(3), 3
    out = np.zeros((2 * tile_m, out_features), np.float32)
    run_all(moe.expert_down, {"weight": matrix}, {
        "inner": x, "weight": weight, "tile_expert": tile_expert, "tile_rows": tile_rows,
        "expert_out": out, "tile_m": tile_m, "tile_n": tile_n, "in_features": in_features},
        (2, ceil_div(out_features, tile_n)))
    for tile, expert in enumerate(tile_expert):
        filled = np.flatnonzero(tile_rows[tile] >= 0) + tile * tile_m
        assert_close(out[filled], x[filled].astype(np.float64) @ value[expert].T, in_features)


def test_embeddings_of_blocks():
    rng = np.random.default_rng(3)
    weight, value = weight_as(rng, "four_bits", 11, 96)
    token_ids = rng.integers(0, 11, (2, 8)).astype(np.int32)
    out = np.zeros((2, 96), np.float32)
    run_all(df.embed_tokens, {"weight": "four_bits"}, PLACES | {
        "token_ids": token_ids, "weight": weight, "out": out, "tile_m": 2, "hidden_size": 96},
        (1,), {layout.ROW_BASE: 1})
    np.testing.assert_array_equal(out, value[token_ids[[1, 0], [2, 6]]])


@pytest.mark.parametrize("keys, values", [("bfloat16", "bfloat16"), (HALF, "bfloat16"),
                                          ("float32", HALF)])
def test_a_cache_in_a_format_of_its_own(keys, values):
    """What is stored is what a float32 cache would have, rounded; norms are float32."""
    rng = np.random.default_rng(4)
    kv_heads, head_dim, max_context, group_heads = 2, 36, 8, 3
    rope = Rope(rng, "float32", head_dim, max_context, with_norm=True)
    k, v = normal(rng, 2, kv_heads * head_dim), normal(rng, 2, kv_heads * head_dim)
    old = normal(rng, 2, kv_heads, max_context, head_dim)
    kept = {}
    for name, formats in (("float32", {}), ("own", {"k_cache": keys, "v_cache": values})):
        caches = [stored(old, formats.get(cache, "float32"))[0] for cache in ("k_cache", "v_cache")]
        run_all(df.rope_append, formats, without(rope.operands, "q_norm") | PLACES | {
            "k": k, "v": v, "k_cache": caches[0], "v_cache": caches[1], "tile_m": 2,
            "head_dim": head_dim}, (1, kv_heads), {layout.ROW_BASE: 1})
        kept[name] = caches
    for wide, own, dtype in zip(kept["float32"], kept["own"], (keys, values), strict=True):
        np.testing.assert_array_equal(stored(wide, dtype)[0], own)

    heads = kv_heads * group_heads
    common = {"tile_m": 2, "head_dim": head_dim, "group_heads": group_heads,
              "group_width": group_heads * head_dim, "kv_splits": 2}
    outs = {}
    as_float32 = [from_storage(own, dtype).astype(np.float32)
                  for own, dtype in zip(kept["own"], (keys, values), strict=True)]
    q = normal(rng, 2, heads * head_dim)
    own_formats = {"k_cache": keys, "v_cache": values}
    for name, formats, (k_cache, v_cache) in (("float32", {}, as_float32),
                                              ("own", own_formats, kept["own"])):
        partial = np.zeros((2, 2, heads * head_dim), np.float32)
        stats, out = np.zeros((2, 2, 2 * heads), np.float32), np.zeros_like(q)
        run_all(df.attention, formats, rope.operands | PLACES | common | {
            "q": q, "k_cache": k_cache, "v_cache": v_cache, "partial": partial, "stats": stats,
            "window": 0, "scale": head_dim**-0.5, "context": 8}, (1, kv_heads, 2),
            {layout.ROW_BASE: 1})
        run_all(df.attention_combine, {}, {"partial": partial, "stats": stats, "out": out} | common,
                (1, kv_heads))
        outs[name] = out
    assert_close(outs["own"], outs["float32"], head_dim)
