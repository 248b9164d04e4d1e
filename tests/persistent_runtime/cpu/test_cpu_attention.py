"""rope_append, attention and attention_combine against float64 references: any shape of heads, rows
of one request and of several, windows, splits."""

import itertools

import numpy as np
import pytest

pytest.importorskip("numba")

from body_references import (
    DTYPES,
    SPACING,
    Rope,
    assert_close,
    ceil_div,
    from_storage,
    normal,
    run_all,
    stored,
    without,
)
from cases import pairs, sampled

from persistent_runtime.functions import dense as df
from persistent_runtime.rows import layout

# head_dim, group_heads, kv_splits, window, longest
SHAPES = [(64, 1, 1, 0, 150), (80, 4, 3, 0, 200), (128, 7, 2, 0, 70), (128, 2, 5, 40, 200),
          (64, 4, 8, 3, 20), (36, 3, 2, 0, 100)]


@pytest.mark.parametrize("dtype, head_dim, with_norm", pairs(
    DTYPES, [64, 80, 128, 36], [False, True], only_interpreted=True))
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


ROWS = list(itertools.product([1, 4], [False, True]))  # of a tile, and whether they are apart


@pytest.mark.parametrize("dtype, shape, tile_m, rows_are_apart", sampled(
    [(dtype, shape, *rows) for dtype, shape, rows in itertools.product(DTYPES, SHAPES, ROWS)],
    [(DTYPES[k % len(DTYPES)], shape, *ROWS[k % 4]) for k, shape in enumerate(SHAPES)],
    only_interpreted=True))
def test_attention(dtype, shape, tile_m, rows_are_apart):
    head_dim, group_heads, kv_splits, window, longest = shape
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
