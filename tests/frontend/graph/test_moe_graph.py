"""The graph of a mixture-of-experts decoder, its sample routings, and what a step of it reads."""

from typing import Any

import numpy as np
import pytest
from declared import declared

from event_tensor.derive import derive_events
from event_tensor.edges import IndexRange
from event_tensor.errors import CountError, RaceError
from event_tensor.graph import Call
from event_tensor.printer import format_graph
from event_tensor.tensors import RUNTIME, TensorRead
from event_tensor.verify import verify
from frontend.config.decoder_config import DecoderConfig
from frontend.families.decoder import build_step
from frontend.families.read_config import parse_config
from frontend.graph.operators import Limits, Operators
from frontend.graph.routings import sample_routings
from frontend.graph.tiles import EXPERT_ROWS, SPARSE_LINEAR_ROWS, choose_tiles
from persistent_runtime.functions import experts
from persistent_runtime.functions.experts import expert_tiles
from scheduling.target import H200

TINY: dict[str, Any] = {
    "model_type": "qwen3_moe", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 99,
    "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    "mlp_only_layers": [0]}


def make_config(**fields: Any) -> DecoderConfig:
    return parse_config(TINY | fields, None)


def make_operators(config: DecoderConfig, dtype: str = "float32", workers: int = 4) -> Operators:
    tiles = choose_tiles(config, H200.with_workers(workers), dtype)
    operators = Operators(config, tiles, Limits(1, 64, 65, 1), dtype)
    build_step(operators)
    return operators


def calls_of(operators: Operators, layer: int) -> dict[str, Call]:
    prefix = f"model.layers.{layer}.mlp."
    return {call.name.removeprefix(prefix): call for call in operators.graph.calls
            if call.name.startswith(prefix)}


def test_printed(golden):
    golden("moe_decoder_graph", format_graph(make_operators(make_config()).graph))


def test_dense_and_sparse_layers_mix():
    operators = make_operators(make_config())
    assert list(calls_of(operators, 0)) == ["gate_up", "down_proj"]
    assert list(calls_of(operators, 1)) == [
        "router_logits", *(function.name for function in declared(experts))]
    mixtral = make_operators(make_config(model_type="mixtral"))
    assert "select_experts" in calls_of(mixtral, 0)
    assert int(calls_of(mixtral, 0)["select_experts"].parameters["norm_topk"].evaluate({})) == 1


def test_a_dense_model_has_neither_expert_tiles_nor_calls():
    operators = make_operators(make_config(model_type="qwen3"))
    assert operators.tiles.experts is None
    assert not {call.function for call in operators.graph.calls} & set(declared(experts))


def test_events_are_those_of_experts_tiles_and_rows():
    calls = calls_of(make_operators(make_config()), 1)
    (update,) = calls["group_rows"].out_edges
    (release,) = calls["expert_gate_up"].in_edges
    assert update.event is release.event and release.is_trigger
    assert update.event.wait_count is RUNTIME
    assert update.event.count_from is calls["select_experts"].args[4]  # counts
    assert isinstance(release.map.indices[0], IndexRange)
    (arrive,) = calls["expert_down"].out_edges
    (row,) = calls["combine_experts"].in_edges
    assert arrive.event is row.event
    (read,) = arrive.map.indices
    assert isinstance(read, TensorRead)
    assert len(read.indices) < len(read.tensor.shape)  # partial: all rows of the tile
    tiles_of_down = calls["expert_down"].tile_num[1]
    assert arrive.event.wait_count.evaluate({}) == 2 * tiles_of_down.evaluate({})


def test_layers_share_wide_activations_but_no_routing():
    operators = make_operators(make_config(mlp_only_layers=[]))
    first, second = calls_of(operators, 0), calls_of(operators, 1)
    for name in ("grouped", "inner", "expert_out"):
        tensors = [next(tensor for call in calls.values() for operand, tensor in call.accesses()
                        if operand.name == name) for calls in (first, second)]
        assert tensors[0] is tensors[1]
    written = [{tensor for _, tensor in calls["select_experts"].accesses()
                if tensor.name != "router_logits"} for calls in (first, second)]
    assert len(written[0]) == 7 and not written[0] & written[1]


def test_expert_tiles_fit_the_active_experts():
    config = make_config(hidden_size=2048, moe_intermediate_size=768, num_experts=128,
                         num_experts_per_tok=8)
    tiles = choose_tiles(config, H200, "bfloat16").experts
    assert tiles is not None and tiles.rows == EXPERT_ROWS
    tiles_of_a_step = 8 * -(-768 // tiles.gate_up)
    assert 0.9 <= tiles_of_a_step / H200.workers <= 1  # one round over nearly all workers
    assert tiles.gate_up <= 768 and tiles.down <= 2048 and tiles.router <= 128


@pytest.mark.parametrize("tokens", [1, 2, 31, SPARSE_LINEAR_ROWS])
@pytest.mark.parametrize("experts, top_k", [(1, 1), (5, 2), (5, 5), (128, 8)])
def test_sample_routings_are_consistent(tokens, experts, top_k):
    config = make_config(num_experts=experts, num_experts_per_tok=top_k, num_hidden_layers=3,
                         mlp_only_layers=[1])
    samples = sample_routings(config, {"tokens": tokens})
    assert len(samples) == 3
    loads = []
    for sample in samples:
        assert {name.split(".")[2] for name in sample} == {"0", "2"}
        for layer in (0, 2):
            part = {name.rpartition(".")[2]: values for name, values in sample.items()
                    if name.startswith(f"model.layers.{layer}.mlp.")}
            check_routing(part, tokens, experts, top_k)
        loads.append(sample["model.layers.0.mlp.counts"])
    assert loads[0].max() - loads[0].min() <= 1  # uniform
    assert (loads[1] == tokens).sum() == top_k  # all to one set
    assert all(values.dtype == np.int32 for sample in samples for values in sample.values())


def check_routing(part, tokens, experts, top_k):
    """One choice after another, against the definition."""
    ids, place = part["topk_ids"], part["place"]
    assert ids.shape == place.shape == (tokens, top_k)
    assert all(len(set(row)) == top_k for row in ids.tolist())
    assert ids.min() >= 0 and ids.max() < experts
    tiles = int(expert_tiles(tokens, top_k, experts, EXPERT_ROWS).evaluate({}))
    assert part["tile_rows"].shape == (tiles, EXPERT_ROWS)
    assert part["tile_indptr"][-1] <= tiles
    rows = np.full((tiles, EXPERT_ROWS), -1)
    owners = np.full(tiles, -1)
    tile = 0
    for expert in range(experts):
        assert part["tile_indptr"][expert] == tile
        chosen = np.argwhere(ids == expert)  # in token order
        assert part["counts"][expert] == len(chosen)
        for number, (row, choice) in enumerate(chosen):
            slot = tile * EXPERT_ROWS + number
            assert place[row, choice] == slot
            rows[slot // EXPERT_ROWS, slot % EXPERT_ROWS] = row
            owners[slot // EXPERT_ROWS] = expert
        tile += -(-len(chosen) // EXPERT_ROWS)
    np.testing.assert_array_equal(part["tile_rows"], rows)
    np.testing.assert_array_equal(part["tile_expert"], owners)


@pytest.fixture(scope="module")
def derived():
    """Three layers, so that the second one's tiles meet what the first one left behind."""
    return derive_events(make_operators(make_config(num_hidden_layers=3, mlp_only_layers=[])).graph)


def test_written_events_leave_nothing_to_derive_inside_a_block(derived):
    for layer in range(3):
        calls = {call.name: call for call in derived.calls}
        waits = {part: [edge.event.name for edge in calls[f"model.layers.{layer}.mlp.{part}"]
                        .in_edges]
                 for part in ("group_rows", "expert_gate_up", "expert_down", "combine_experts")}
        assert waits == {part: [f"E_model.layers.{layer}.mlp.{event}"] for part, event in (
            ("group_rows", "routed"), ("expert_gate_up", "expert"), ("expert_down", "tile"),
            ("combine_experts", "row"))}


@pytest.mark.parametrize("tokens", [1, 31, SPARSE_LINEAR_ROWS])
def test_every_sample_is_proved(derived, tokens):
    config = make_config(num_hidden_layers=3, mlp_only_layers=[])
    bindings = {"tokens": tokens, "logit_rows": 1, "context": tokens, "kv_splits": 1}
    for sample in sample_routings(config, bindings):
        table = verify(derived, bindings, sample)
        released = [len(table.tasks_of(call.index)) for call in derived.calls
                    if call.function.name == "expert_down"]
        used = [int(sample[f"model.layers.{layer}.mlp.tile_indptr"][-1]) for layer in range(3)]
        columns = calls_of(make_operators(config), 0)["expert_down"].tile_num[1].evaluate({})
        assert released == [tiles * columns for tiles in used]


@pytest.mark.parametrize("broken, error", [("place", RaceError), ("counts", CountError)])
def test_a_sample_that_contradicts_itself_is_refused(derived, broken, error):
    config = make_config(num_hidden_layers=3, mlp_only_layers=[])
    bindings = {"tokens": 20, "logit_rows": 1, "context": 20, "kv_splits": 1}
    sample = sample_routings(config, bindings)[0]
    name = f"model.layers.1.mlp.{broken}"
    sample[name] = sample[name][::-1].copy() if broken == "place" else sample[name] + 1
    with pytest.raises(error):
        verify(derived, bindings, sample)


def test_a_dense_model_has_one_empty_sample():
    assert sample_routings(make_config(model_type="qwen3"), {"tokens": 3}) == [{}]


def test_no_routing_needs_more_tiles_than_there_are():
    rng = np.random.default_rng(1)
    for _ in range(500):
        experts, tokens = int(rng.integers(1, 12)), int(rng.integers(1, 70))
        top_k = int(rng.integers(1, experts + 1))
        scores = rng.random((tokens, experts)) * rng.random(experts) ** 4
        counts = np.bincount(np.argsort(-scores)[:, :top_k].ravel(), minlength=experts)
        used = (-(-counts // EXPERT_ROWS)).sum()
        assert used <= expert_tiles(tokens, top_k, experts, EXPERT_ROWS).evaluate({})


@pytest.mark.parametrize("dtype, width", [("float32", 4), ("bfloat16", 2)])
def test_a_step_reads_the_weights_of_its_own_experts_only(dtype, width):
    sparse = make_operators(make_config(), dtype)
    dense = make_operators(make_config(model_type="qwen3"), dtype)
    mlp = 3 * 48 * 80
    experts = 3 * 48 * 24 * 2 + 5 * 48  # two of the five, and the router
    assert sparse.active_weight_bytes - dense.active_weight_bytes == (experts - mlp) * width
