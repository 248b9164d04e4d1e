"""The bodies of an MoE block against references: any routing, odd shapes, NaN where none looks."""

import numpy as np
import pytest

pytest.importorskip("numba")

import torch
from body_references import (
    DTYPES,
    assert_close,
    ceil_div,
    normal,
    rms_normed,
    stored,
)
from cases import INTERPRETED, pairs, sampled, turns, usual_or

from persistent_runtime.cpu.single_tile import run_tile
from persistent_runtime.functions import dense as df
from persistent_runtime.functions import experts as moe

SEEDS = range(usual_or(1, 4) if INTERPRETED else 4)
EPS = 1e-6
# (tokens, experts, top_k, slots of a tile)
ROUTINGS = [(1, 5, 1, 1), (1, 5, 4, 1), (16, 5, 3, 4), (65, 5, 2, 16), (65, 5, 4, 1),
            (1, 128, 8, 1), (65, 60, 8, 3), (16, 256, 16, 8), (3, 8, 8, 2)]


def run_all(declaration, dtype, values, counts):
    names = {name: values[name] for name in declaration.parameters
             if isinstance(values.get(name), int)}
    scratch_bytes = declaration.scratch_bytes.evaluate({"tile_m": 1, "tile_n": 1} | names)
    for tile in np.ndindex(*counts):
        run_tile(declaration, dtype, values, tile, scratch_bytes)


def random_logits(rng, tokens, experts):
    return normal(rng, tokens, experts)


def tied_logits(rng, tokens, experts):
    return rng.integers(-1, 2, (tokens, experts)).astype(np.float32)


def signed_zeros(rng, tokens, experts):
    return np.where(rng.random((tokens, experts)) < 0.5, np.float32(0), np.float32(-0.0))


def broken_logits(rng, tokens, experts):
    """NaN and infinities here and there; the first row is all NaN."""
    logits = normal(rng, tokens, experts)
    kind = rng.integers(0, 8, logits.shape)
    logits[kind == 0], logits[kind == 1], logits[kind == 2] = np.nan, -np.inf, np.inf
    logits[0] = np.nan
    return logits


def one_expert_first(rng, tokens, experts):
    """Every row chooses expert 1 above all."""
    logits = normal(rng, tokens, experts)
    logits[:, min(1, experts - 1)] = 100
    return logits


def far_apart(rng, tokens, experts):
    """All but the largest few probabilities underflow."""
    return 200 * normal(rng, tokens, experts)


LOGITS = (random_logits, tied_logits, signed_zeros, broken_logits, one_expert_first, far_apart)


def tiles_needed(tokens, experts, top_k, tile_m):
    return int(moe.expert_tiles(tokens, top_k, experts, tile_m).evaluate({}))


def empty_routing(tokens, experts, top_k, tile_m):
    """What select_experts writes, filled with what it must not leave."""
    tiles = tiles_needed(tokens, experts, top_k, tile_m)

    def integers(*shape):
        return np.full(shape, 2**30, np.int32)

    return {"topk_ids": integers(tokens, top_k),
            "topk_weights": np.full((tokens, top_k), np.nan, np.float32),
            "place": integers(tokens, top_k), "counts": integers(experts),
            "tile_indptr": integers(experts + 1), "tile_expert": integers(tiles),
            "tile_rows": integers(tiles, tile_m)}


def expected_routing(logits, top_k, tile_m, norm_topk):
    """The same from definitions, and the weights in float64 after a float32 difference."""
    tokens, experts = logits.shape
    ranked = np.where(np.isnan(logits), -np.inf, logits)
    ids = np.argsort(-ranked, axis=1, kind="stable")[:, :top_k]
    with np.errstate(invalid="ignore"):  # infinities
        exponentials = np.exp((logits - logits.max(1, keepdims=True)).astype(np.float64))
    probabilities = exponentials / exponentials.sum(1, keepdims=True)
    weights = np.take_along_axis(probabilities, ids, 1)
    if norm_topk:
        weights = weights / weights.sum(1, keepdims=True)
    routing = empty_routing(tokens, experts, top_k, tile_m)
    routing |= {"topk_ids": ids, "topk_weights": weights}
    routing["tile_rows"][...] = -1
    routing["tile_expert"][...] = -1
    tile = 0
    for expert in range(experts):
        rows = np.flatnonzero((ids == expert).any(1))
        routing["counts"][expert] = len(rows)
        routing["tile_indptr"][expert] = tile
        for number, row in enumerate(rows):
            slot = tile * tile_m + number
            routing["tile_rows"].reshape(-1)[slot] = row
            routing["place"][row, ids[row] == expert] = slot
        end = tile + ceil_div(len(rows), tile_m)
        routing["tile_expert"][tile:end] = expert
        tile = end
    routing["tile_indptr"][experts] = tile
    return routing


def select(logits, top_k, tile_m, norm_topk):
    tokens, experts = logits.shape
    routing = empty_routing(tokens, experts, top_k, tile_m)
    run_all(moe.select_experts, "float32", routing | {
        "router_logits": logits, "tile_m": tile_m, "top_k": top_k, "num_experts": experts,
        "norm_topk": norm_topk}, (1,))
    return routing


def assert_same_routing(actual, expected):
    for name, value in expected.items():
        if name == "topk_weights":
            # the exponential of a logit difference d is off by d roundings of its argument
            off = 1e-6 + 1.2e-7 * np.abs(np.log(np.maximum(value, 1e-37)))
            np.testing.assert_array_equal(np.isnan(actual[name]), np.isnan(value))
            close = np.abs(actual[name] - value) <= off * value + 1e-37
            assert (close | np.isnan(value)).all()
        else:
            np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.parametrize("make_logits, routing, norm_topk",
                         pairs(LOGITS, ROUTINGS, [0, 1], only_interpreted=True))
def test_select_experts(make_logits, routing, norm_topk):
    tokens, experts, top_k, tile_m = routing
    for seed in SEEDS:
        logits = make_logits(np.random.default_rng(seed), tokens, experts)
        assert_same_routing(select(logits, top_k, tile_m, norm_topk),
                            expected_routing(logits, top_k, tile_m, norm_topk))


def test_select_experts_for_the_largest_step():
    logits = normal(np.random.default_rng(0), 1024, 100)
    assert_same_routing(select(logits, 8, 64, 1), expected_routing(logits, 8, 64, 1))


@pytest.mark.parametrize("tile_m", [1, 2, 3, 8])
def test_expert_tiles_is_the_most_that_any_routing_needs(tile_m):
    for choices in range(1, 14):
        for experts in range(1, 5):
            most = max(sum(ceil_div(rows, tile_m) for rows in counts)
                       for counts in np.ndindex(*[choices + 1] * experts)
                       if sum(counts) == choices)
            assert tiles_needed(choices, experts, 1, tile_m) == most


@pytest.mark.parametrize("dtype, routing, hidden", pairs(
    DTYPES, [(1, 5, 4, 1), (16, 5, 3, 4), (65, 5, 2, 16)], [64, 83], only_interpreted=True))
def test_group_rows(dtype, routing, hidden):
    tokens, experts, top_k, tile_m = routing
    rng = np.random.default_rng(5)
    chosen = expected_routing(normal(rng, tokens, experts), top_k, tile_m, 0)
    x = normal(rng, tokens, hidden)
    norm, norm_value = stored(1 + 0.1 * normal(rng, hidden), dtype)
    grouped = np.full((chosen["tile_rows"].size, hidden), np.nan, np.float32)
    run_all(moe.group_rows, dtype, {
        "x": x, "norm_weight": norm, "grouped": grouped, "hidden_size": hidden, "eps": EPS,
        "topk_ids": chosen["topk_ids"].astype(np.int32), "place": chosen["place"]},
        (tokens, top_k))
    expected = rms_normed(x, norm_value, EPS)
    slots = chosen["tile_rows"].reshape(-1)
    assert_close(grouped[slots >= 0], expected[slots[slots >= 0]], hidden)
    assert np.isnan(grouped[slots < 0]).all()


# (routing, in_features, out_features, tile_n); what divides nothing, one row, many rows
PRODUCTS = [((1, 5, 4, 1), 64, 48, 16), ((1, 5, 2, 4), 333, 37, 10), ((16, 5, 3, 4), 100, 61, 24),
            ((65, 5, 2, 16), 96, 64, 64), ((65, 5, 1, 64), 19, 5, 3), ((65, 5, 3, 40), 40, 70, 32)]


@pytest.mark.parametrize("dtype, product, make_logits", turns(
    DTYPES, PRODUCTS, [random_logits, one_expert_first], only_interpreted=True))
def test_experts(dtype, product, make_logits):
    """Both products. The weights of experts without rows and the slots without rows are NaN."""
    (tokens, experts, top_k, tile_m), in_features, out_features, tile_n = product
    rng = np.random.default_rng(6)
    chosen = expected_routing(make_logits(rng, tokens, experts), top_k, tile_m, 0)
    slots = chosen["tile_rows"].reshape(-1)
    filled, expert = slots >= 0, np.repeat(chosen["tile_expert"], tile_m)
    x = normal(rng, len(slots), in_features)
    x[~filled] = np.nan
    values = {"tile_m": tile_m, "tile_n": tile_n, "in_features": in_features,
              "row_bytes": 2 * in_features, "tile_expert": chosen["tile_expert"],
              "tile_rows": chosen["tile_rows"]}
    counts = (len(chosen["tile_expert"]), ceil_div(out_features, tile_n))
    untouched = chosen["counts"] == 0

    def expert_weights(rows):
        weight = normal(rng, experts, rows, in_features)
        weight[untouched] = np.nan
        return stored(weight, dtype)

    def products(weight_value):
        return np.stack([weight_value[e] @ row for e, row in
                         zip(expert[filled], x[filled].astype(np.float64), strict=True)])

    weight, value = expert_weights(2 * out_features)
    inner = np.full((len(slots), out_features), np.nan, np.float32)
    run_all(moe.expert_gate_up, dtype, values | {"grouped": x, "weight": weight, "inner": inner},
            counts)
    gate, up = np.split(products(value), 2, axis=1)
    assert_close(inner[filled], gate / (1 + np.exp(-gate)) * up, 4 * in_features)

    weight, value = expert_weights(out_features)
    out = np.full((len(slots), out_features), np.nan, np.float32)
    run_all(moe.expert_down, dtype, values | {"inner": x, "weight": weight, "expert_out": out},
            counts)
    assert_close(out[filled], products(value), in_features)

    for result in (inner, out):  # a tile without rows writes nothing
        in_use = int(chosen["tile_indptr"][-1]) * tile_m
        assert np.isnan(result[in_use:]).all()


@pytest.mark.parametrize("routing", ROUTINGS[:7])
@pytest.mark.parametrize("hidden", [64, 83])
def test_combine_experts(routing, hidden):
    tokens, experts, top_k, tile_m = routing
    rng = np.random.default_rng(7)
    chosen = expected_routing(normal(rng, tokens, experts), top_k, tile_m, 1)
    slots = chosen["tile_rows"].reshape(-1)
    expert_out = normal(rng, len(slots), hidden)
    expert_out[slots < 0] = np.nan
    before = normal(rng, tokens, hidden)
    residual = before.copy()
    run_all(moe.combine_experts, "float32", {
        "topk_weights": chosen["topk_weights"].astype(np.float32), "place": chosen["place"],
        "expert_out": expert_out, "residual": residual, "hidden_size": hidden, "top_k": top_k},
        (tokens,))
    weighted = chosen["topk_weights"][..., None] * expert_out[chosen["place"]].astype(np.float64)
    assert_close(residual, before + weighted.sum(1), top_k)


def transformers_block(family, hidden, inner, experts, top_k, norm_topk):
    from transformers import MixtralConfig, OlmoeConfig, Qwen3MoeConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    common = {"hidden_size": hidden, "num_experts_per_tok": top_k, "num_attention_heads": 2,
              "num_key_value_heads": 1, "experts_implementation": "eager"}
    if family == "qwen3_moe":
        return Qwen3MoeSparseMoeBlock(Qwen3MoeConfig(
            num_experts=experts, moe_intermediate_size=inner, norm_topk_prob=bool(norm_topk),
            **common))
    if family == "olmoe":
        return OlmoeSparseMoeBlock(OlmoeConfig(
            num_experts=experts, intermediate_size=inner, norm_topk_prob=bool(norm_topk),
            **common))
    return MixtralSparseMoeBlock(MixtralConfig(
        num_local_experts=experts, intermediate_size=inner, **common))


@pytest.mark.parametrize("family, norm_topk, tokens, tile_m", sampled(
    [(*family, *rows) for family in (("qwen3_moe", 1), ("qwen3_moe", 0), ("olmoe", 0),
                                     ("mixtral", 1)) for rows in ((1, 1), (16, 4), (65, 16))],
    [("qwen3_moe", 1, 16, 4), ("qwen3_moe", 0, 1, 1), ("olmoe", 0, 65, 16), ("mixtral", 1, 16, 4)],
    only_interpreted=True))
def test_the_whole_block_is_that_of_transformers(family, norm_topk, tokens, tile_m):
    """In float32: the same experts, and results that differ by rounding only."""
    hidden, inner_size, experts, top_k, tile_n = 72, 40, 5, 3, 32
    torch.manual_seed(tokens)
    block = transformers_block(family, hidden, inner_size, experts, top_k, norm_topk)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    rng = np.random.default_rng(tokens)
    x, norm = normal(rng, tokens, hidden), (1 + 0.1 * normal(rng, hidden)).astype(np.float32)
    normed = torch.tensor(rms_normed(x, norm, EPS).astype(np.float32))
    with torch.no_grad():
        expected = x + block(normed[None])[0].numpy()
        expected_ids = block.gate(normed)[2].numpy()

    weights = {name: parameter.detach().numpy() for name, parameter in block.named_parameters()}
    logits = np.full((tokens, experts), np.nan, np.float32)
    run_all(df.norm_linear, "float32", {
        "x": x, "norm_weight": norm, "weight": weights["gate.weight"], "out": logits,
        "tile_m": tile_m, "tile_n": 2, "in_features": hidden, "row_bytes": 4 * hidden, "eps": EPS},
        (ceil_div(tokens, tile_m), ceil_div(experts, 2)))
    chosen = select(logits, top_k, tile_m, norm_topk)
    np.testing.assert_array_equal(np.sort(chosen["topk_ids"]), np.sort(expected_ids))

    tiles = len(chosen["tile_expert"])
    grouped, out = (np.full((tiles * tile_m, hidden), np.nan, np.float32) for _ in range(2))
    inner = np.full((tiles * tile_m, inner_size), np.nan, np.float32)
    run_all(moe.group_rows, "float32", {
        "x": x, "norm_weight": norm, "topk_ids": chosen["topk_ids"], "place": chosen["place"],
        "grouped": grouped, "hidden_size": hidden, "eps": EPS}, (tokens, top_k))
    common = {"tile_m": tile_m, "tile_n": tile_n, "row_bytes": 4,
              "tile_expert": chosen["tile_expert"], "tile_rows": chosen["tile_rows"]}
    run_all(moe.expert_gate_up, "float32", common | {
        "grouped": grouped, "weight": weights["experts.gate_up_proj"], "inner": inner,
        "in_features": hidden}, (tiles, ceil_div(inner_size, tile_n)))
    run_all(moe.expert_down, "float32", common | {
        "inner": inner, "weight": weights["experts.down_proj"], "expert_out": out,
        "in_features": inner_size}, (tiles, ceil_div(hidden, tile_n)))
    residual = x.copy()
    run_all(moe.combine_experts, "float32", {
        "topk_weights": chosen["topk_weights"], "place": chosen["place"], "expert_out": out,
        "residual": residual, "hidden_size": hidden, "top_k": top_k}, (tokens,))
    assert_close(residual, expected, hidden + inner_size)
