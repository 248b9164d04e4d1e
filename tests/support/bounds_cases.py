"""Calls of every device function with extreme values in every floating operand.

A case is a function `case(rng, dtype, call)`. `call(declaration, values, tile counts, step)` runs
all tiles of a call on guarded copies of the operands and returns those copies. Integers that the
caller owns (requests, positions) are valid; those that one body leaves for another come from the
body that leaves them, and are looked at here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from declared import declared
from extreme_values import (
    FRACTIONS,
    INF,
    NAN,
    PENALTIES,
    SEEDS,
    TEMPERATURES,
    TOP_KS,
    extreme,
    extreme_as,
    pick,
    stored,
)

from event_tensor.device_function import DeviceFunction
from persistent_runtime.functions import dense as df
from persistent_runtime.functions import experts as moe
from persistent_runtime.rows import layout

Call = Callable[..., dict[str, np.ndarray]]
Rng = np.random.Generator
EPSILONS = (1e-6, 0.0, 1e-45, NAN, INF, -1.0)
BEFORE = 2  # entries of row_request, row_position and logit_row that belong to earlier steps


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def integers(*values: Any) -> np.ndarray:
    return np.array([*values], np.int32)


def unwritten(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.full(shape, NAN if dtype == np.float32 else -(2**30), dtype)


def linear_shape(rng: Rng, is_small: bool, most_rows: int = 33) -> dict[str, int]:
    """Sizes of products: a row, several, as many as are rounded; vectors and panels cut short."""
    if is_small:
        sizes = {"rows": (1, 1, 2, 5), "in_features": (1, 5, 16, 37), "out_features": (1, 3, 20),
                 "tile_m": (1, 4, 32), "tile_n": (3, 16)}
    else:
        sizes = {"rows": (1, 1, 2, 3, 7, 17, most_rows),
                 "in_features": (1, 5, 16, 19, 64, 100, 257, 333),
                 "out_features": (1, 3, 16, 37, 61), "tile_m": (1, 4, 32),
                 "tile_n": (1, 3, 10, 24, 64)}
    return {name: pick(rng, values) for name, values in sizes.items()}


def tiling(shape: dict[str, int]) -> tuple[dict[str, int], tuple[int, int]]:
    parameters = {name: shape[name] for name in ("tile_m", "tile_n", "in_features")}
    return parameters | {"row_bytes": 2 * shape["in_features"]}, (
        ceil_div(shape["rows"], shape["tile_m"]), ceil_div(shape["out_features"], shape["tile_n"]))


def maybe(rng: Rng, values: np.ndarray) -> np.ndarray | None:
    """An optional operand."""
    return values if rng.random() < 0.5 else None


def products(rng: Rng, dtype: str, call: Call, is_small: bool) -> None:
    """The dense products, with and without their biases."""
    shape = linear_shape(rng, is_small)
    rows, length, columns = shape["rows"], shape["in_features"], shape["out_features"]
    parameters, counts = tiling(shape)
    common = parameters | {"x": extreme(rng, rows, length)}
    norm = {"norm_weight": extreme_as(rng, dtype, length), "eps": pick(rng, EPSILONS)}

    def weight() -> np.ndarray:
        return extreme_as(rng, dtype, columns, length)

    def bias() -> np.ndarray | None:
        return maybe(rng, extreme_as(rng, dtype, columns))

    call(df.norm_linear, common | norm | {
        "weight": weight(), "bias": bias(), "out": unwritten(rows, columns)}, counts)
    call(df.linear_residual, common | {
        "weight": weight(), "bias": bias(), "residual": extreme(rng, rows, columns)}, counts)
    call(df.norm_gate_up, common | norm | {
        "gate_weight": weight(), "up_weight": weight(), "gate_bias": bias(), "up_bias": bias(),
        "out": unwritten(rows, columns)}, counts)


def heads(rng: Rng, dtype: str, call: Call, is_small: bool) -> None:
    """Keys appended, attention over splits and windows, the splits combined."""
    head_dim = pick(rng, (2, 20, 36) if is_small else (2, 36, 64, 80, 128))
    kv_heads, requests = pick(rng, (1, 2)), pick(rng, (1, 3))
    group_heads, kv_splits = pick(rng, (1, 3)), pick(rng, (1, 2, 5))
    longest, tile_m = pick(rng, (1, 9) if is_small else (1, 9, 70)), pick(rng, (1, 4))
    has_own = rng.random() < 0.5  # then each row is of a request of its own
    row_request = rng.permutation(requests) if has_own else np.sort(
        rng.integers(0, requests, pick(rng, (1, 5))))
    rows = len(row_request)
    row_position = rng.integers(0, longest, rows)
    row_position[rng.integers(rows)] = longest - 1
    step = {layout.ROW_BASE: BEFORE}
    angles = {name: extreme(rng, longest, max(head_dim // 2, 1)) for name in ("cos", "sin")}
    common = angles | {
        "row_request": integers(*[0] * BEFORE, *row_request),
        "row_position": integers(*[0] * BEFORE, *row_position), "tile_m": tile_m,
        "head_dim": head_dim, "eps": pick(rng, EPSILONS)}
    keys = {name: extreme(rng, rows, kv_heads * head_dim) for name in ("k", "v")}
    caches = {name: extreme_as(rng, dtype, requests, kv_heads, longest, head_dim)
              for name in ("k_cache", "v_cache")}
    k_norm = {"k_norm": maybe(rng, extreme_as(rng, dtype, head_dim))}
    kept = call(df.rope_append, common | keys | caches | k_norm,
                (ceil_div(rows, tile_m), kv_heads), step)
    groups = {"group_heads": group_heads, "group_width": group_heads * head_dim,
              "kv_splits": kv_splits}
    width = kv_heads * group_heads * head_dim
    counts = (ceil_div(rows, tile_m), kv_heads)
    found = call(df.attention, common | k_norm | groups | (keys if has_own else {}) | {
        "q": extreme(rng, rows, width), "q_norm": maybe(rng, extreme_as(rng, dtype, head_dim)),
        "k_cache": kept["k_cache"], "v_cache": kept["v_cache"],
        "partial": unwritten(rows, kv_splits, width),
        "stats": unwritten(rows, kv_splits, kv_heads * group_heads * 2),
        "window": pick(rng, (0, 0, 1, 3, 2**30)), "scale": pick(rng, (head_dim**-0.5, *EPSILONS)),
        "kv_row_bytes": 2 * head_dim, "context": longest}, (*counts, kv_splits), step)
    for partial, stats in ((found["partial"], found["stats"]),
                           (extreme(rng, *found["partial"].shape),
                            extreme(rng, *found["stats"].shape))):
        call(df.attention_combine, groups | {
            "partial": partial, "stats": stats, "out": unwritten(rows, width), "tile_m": tile_m,
            "head_dim": head_dim}, counts)


def sampling_records(rng: Rng, requests: int) -> np.ndarray:
    """Settings that no host would let through; words without a name here hold anything."""
    records = extreme(rng, requests, layout.SAMPLING_WORDS)
    choices = {layout.TEMPERATURE: TEMPERATURES, layout.TOP_K: TOP_KS, layout.TOP_P: FRACTIONS,
               layout.MIN_P: FRACTIONS, layout.REPETITION_PENALTY: PENALTIES,
               layout.LOGPROBS: (0.0, 1.0, NAN)}
    for record in records:
        for word, values in choices.items():
            if rng.random() < 0.5:  # the first of each is what changes nothing, or greedy
                record[word] = pick(rng, values)
            else:
                record[word] = values[0] if word != layout.TEMPERATURE else 1.0
        if rng.random() < 0.2:
            record[layout.TEMPERATURE] = 0.0
    return records


def processors(rng: Rng, requests: int, vocab: int, context: int) -> dict[str, np.ndarray]:
    """Biases of any value for any token, behind prefixes of any length, and runs that are banned:
    in lists that end with the last one."""
    count, lone = int(rng.integers(0, 9)), int(rng.integers(0, 4))
    lengths = rng.integers(0, 4, count)
    lengths[:lone] = 0
    ends = np.cumsum(lengths)
    biases = np.zeros((count, layout.BIAS_WORDS), np.int32)
    biases[:, layout.BIAS_TOKEN] = np.sort(rng.integers(0, vocab, count))
    biases[:lone, layout.BIAS_TOKEN] = rng.permutation(vocab)[:len(biases[:lone])] if (
        vocab >= lone) else 0
    biases[:, layout.BIAS_VALUE] = extreme(rng, count + 1)[:count].view(np.int32)
    biases[:, layout.BIAS_LIMIT] = rng.integers(layout.NO_LIMIT, layout.MINIMUM_LIMIT + 1, count)
    biases[:, layout.BIAS_PREFIX], biases[:, layout.BIAS_PREFIX_END] = ends - lengths, ends
    records = np.zeros((requests, layout.PROCESSORS_WORDS), np.int32)
    records[:, layout.BIAS_SHARED], records[:, layout.BIAS_END] = min(lone, count), count
    for word in (layout.NO_LIMIT, layout.FIRST_LIMIT, layout.MINIMUM_LIMIT):
        records[:, word] = rng.choice([-1, 0, 5, 2**31 - 1], requests)
    records[:, layout.NO_REPEAT_NGRAM] = rng.choice([0, 1, 2, context, 2**31 - 1], requests)
    return {"processors": records, "biases": biases,
            "bias_prefixes": rng.integers(0, vocab, int(ends[-1]) if count else 0).astype(np.int32)}


def tokens(rng: Rng, dtype: str, call: Call, is_small: bool) -> None:
    """Logits, the token that is chosen from them, and its row of the embedding."""
    vocab = pick(rng, (1, 3, 50, 1030) if is_small else (1, 3, 50, 1013, 2500))
    hidden, tile_n, tile_m = pick(rng, (1, 20)), pick(rng, (100, 1024)), pick(rng, (1, 2))
    logit_rows, context = pick(rng, (1, 2)), pick(rng, (2, 40))
    requests, row_count = logit_rows + rng.integers(2), logit_rows + rng.integers(3)
    logit_row = rng.permutation(row_count)[:logit_rows]
    # requests of different logit rows differ
    row_request = np.zeros(row_count, int)
    row_request[logit_row] = rng.permutation(requests)[:logit_rows]
    row_position = rng.integers(0, context - 1, row_count)
    step = {layout.ROW_BASE: BEFORE, layout.LOGIT_BASE: BEFORE, layout.ROW_ADVANCE: 1}
    tiles, logit_entries = ceil_div(vocab, tile_n), integers(*[0] * BEFORE, *logit_row)
    x, norm_weight = extreme(rng, row_count, hidden), extreme_as(rng, dtype, hidden)
    if hidden == 1:  # then logits may be any value, those of the only column of weights
        x, norm_weight = np.ones((row_count, 1), np.float32), stored(np.ones(1, np.float32), dtype)
    found = call(df.norm_lm_head, {
        "x": x, "logit_row": logit_entries, "norm_weight": norm_weight,
        "weight": extreme_as(rng, dtype, vocab, hidden), "logits": unwritten(logit_rows, vocab),
        "tile_max": unwritten(logit_rows, tiles),
        "tile_argmax": unwritten(logit_rows, tiles, dtype=np.int32), "tile_m": tile_m,
        "tile_n": tile_n, "in_features": hidden, "row_bytes": 2 * hidden,
        "eps": pick(rng, EPSILONS),
    }, (ceil_div(logit_rows, tile_m), tiles), step)
    assert (found["tile_argmax"] // tile_n == np.arange(tiles)).all(), found["tile_argmax"]
    assert (found["tile_argmax"] < vocab).all(), found["tile_argmax"]
    records = sampling_records(rng, requests)
    # a maximum that is NaN ends a request; without one the sampler sees the same logits
    tile_max = found["tile_max"] if rng.random() < 0.3 else np.nan_to_num(found["tile_max"])
    chosen = call(df.select_token, processors(rng, requests, vocab, context) | {
        "tile_max": tile_max, "tile_argmax": found["tile_argmax"],
        "logits": found["logits"], "scores": unwritten(logit_rows, 2, vocab), "sampling": records,
        "seed": np.array([pick(rng, SEEDS) for _ in range(requests)], np.int64),
        "logit_row": logit_entries, "row_request": integers(*[0] * BEFORE, *row_request),
        "row_position": integers(*[0] * BEFORE, *row_position),
        "token_ids": rng.integers(0, vocab, (requests, context)).astype(np.int32),
        "token_time": np.zeros((requests, context), np.int64),
        "token_logprob": extreme(rng, requests, context),
        "stop_ids": rng.integers(0, vocab, pick(rng, (0, 1, 3))).astype(np.int32),
        "length_limit": np.full(requests, context, np.int32),
        "length": np.zeros(requests, np.int32), "finished": np.zeros(requests, np.int32),
    }, (logit_rows,), step)
    for row in logit_row:
        request, position = row_request[row], row_position[row] + 1
        token = chosen["token_ids"][request, position]
        assert 0 <= token < vocab, f"token {token} of {vocab}, sampling {records[request]}"
    call(df.embed_tokens, {
        "token_ids": chosen["token_ids"], "row_request": integers(*[0] * BEFORE, *row_request),
        "row_position": chosen["row_position"], "weight": extreme_as(rng, dtype, vocab, hidden),
        "out": unwritten(row_count, hidden), "tile_m": 3, "hidden_size": hidden},
        (ceil_div(row_count, 3),), step)


def check_routing(routing: dict[str, np.ndarray], tile_m: int) -> None:
    """What select_experts promises to those who index with it, for whatever it chose."""
    ids, counts = routing["topk_ids"], routing["counts"]
    experts, slots = len(counts), routing["tile_rows"].reshape(-1)
    assert ((ids >= 0) & (ids < experts)).all(), ids
    assert all(len(set(row)) == len(row) for row in ids.tolist()), ids
    assert (counts == np.bincount(ids.reshape(-1), minlength=experts)).all(), counts
    indptr = np.concatenate([[0], np.cumsum(-(-counts // tile_m))])
    assert (routing["tile_indptr"] == indptr).all(), routing["tile_indptr"]
    in_use = np.repeat(np.arange(experts), np.diff(indptr))
    unused = len(routing["tile_expert"]) - len(in_use)
    assert unused >= 0
    assert (routing["tile_expert"] == [*in_use, *[-1] * unused]).all(), routing["tile_expert"]
    rows = np.repeat(np.arange(len(ids)), ids.shape[1])
    assert (slots[routing["place"].reshape(-1)] == rows).all(), routing["place"]
    assert (slots >= 0).sum() == len(rows)


def experts(rng: Rng, dtype: str, call: Call, is_small: bool) -> None:
    """A block of experts behind a router whose logits may be anything."""
    shape = linear_shape(rng, is_small, most_rows=17)
    rows, hidden, inner = shape["rows"], shape["in_features"], shape["out_features"]
    count = pick(rng, (1, 4, 9) if is_small else (1, 5, 33, 128))
    top_k = rng.integers(1, min(count, 3 if is_small else 8) + 1)
    tile_m, tile_n = shape["tile_m"], shape["tile_n"]
    tiles = int(moe.expert_tiles(rows, int(top_k), count, tile_m).evaluate({}))
    routing = call(moe.select_experts, {
        "router_logits": extreme(rng, rows, count),
        "topk_ids": unwritten(rows, top_k, dtype=np.int32), "topk_weights": unwritten(rows, top_k),
        "place": unwritten(rows, top_k, dtype=np.int32), "counts": unwritten(count, dtype=np.int32),
        "tile_indptr": unwritten(count + 1, dtype=np.int32),
        "tile_expert": unwritten(tiles, dtype=np.int32),
        "tile_rows": unwritten(tiles, tile_m, dtype=np.int32), "tile_m": tile_m,
        "top_k": int(top_k), "num_experts": count, "norm_topk": pick(rng, (0, 1))}, (1,))
    check_routing(routing, tile_m)
    of_tiles = {name: routing[name] for name in ("tile_expert", "tile_rows")} | {
        "tile_m": tile_m, "tile_n": tile_n, "row_bytes": 2}
    grouped = call(moe.group_rows, {
        "x": extreme(rng, rows, hidden), "norm_weight": extreme_as(rng, dtype, hidden),
        "topk_ids": routing["topk_ids"], "place": routing["place"],
        "grouped": unwritten(tiles * tile_m, hidden), "hidden_size": hidden,
        "eps": pick(rng, EPSILONS)}, (rows, top_k))["grouped"]
    made = call(moe.expert_gate_up, of_tiles | {
        "grouped": grouped, "weight": extreme_as(rng, dtype, count, 2 * inner, hidden),
        "inner": unwritten(tiles * tile_m, inner), "in_features": hidden},
        (tiles, ceil_div(inner, tile_n)))["inner"]
    out = call(moe.expert_down, of_tiles | {
        "inner": made, "weight": extreme_as(rng, dtype, count, hidden, inner),
        "expert_out": unwritten(tiles * tile_m, hidden), "in_features": inner},
        (tiles, ceil_div(hidden, tile_n)))["expert_out"]
    call(moe.combine_experts, {
        "topk_weights": routing["topk_weights"], "place": routing["place"], "expert_out": out,
        "residual": extreme(rng, rows, hidden), "hidden_size": hidden, "top_k": int(top_k)},
        (rows,))


# case → the functions that it calls
CASES: dict[Callable[..., None], tuple[DeviceFunction, ...]] = {
    products: (df.norm_linear, df.linear_residual, df.norm_gate_up),
    heads: (df.rope_append, df.attention, df.attention_combine),
    tokens: (df.norm_lm_head, df.select_token, df.embed_tokens),
    experts: declared(moe)}
