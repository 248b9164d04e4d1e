"""What a mixture-of-experts model really executes: the routed tiles and no others, and no weight of
an expert that nobody chose. Batches of prompts beside single ones."""

import numpy as np
import pytest
import torch
import transformers
from cases import turns
from task_counts import task_counts

from frontend.compile import compile_decode_loop
from scheduling.names import SCHEDULES as NAMES

FAMILIES = {
    "qwen3_moe": (transformers.Qwen3MoeConfig, {
        "num_experts": 11, "num_experts_per_tok": 2, "moe_intermediate_size": 40,
        "norm_topk_prob": True}),
    "mixtral": (transformers.MixtralConfig, {"num_local_experts": 7, "num_experts_per_tok": 2})}
SCHEDULES = ("static", "dynamic", "dynamic_early", "hybrid", "hybrid_early", "unfused")


def make_model(family):
    config, fields = FAMILIES[family]
    torch.manual_seed(1)
    return transformers.AutoModelForCausalLM.from_config(config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=307, max_position_embeddings=256,
        initializer_range=0.15, **fields)).eval()


def chosen_experts(model, ids):
    """Per layer the experts of each row, as transformers' routers choose them."""
    with torch.inference_mode():
        logits = model(torch.tensor([ids]), output_router_logits=True).router_logits
    top_k = model.config.num_experts_per_tok
    return [layer.reshape(len(ids), -1).topk(top_k).indices.numpy() for layer in logits]


def activation(decoder, name):
    return decoder._buffers.array(decoder._operators.tensors[name])


@pytest.mark.parametrize("family, schedule", turns(list(FAMILIES), SCHEDULES))
def test_exactly_the_routed_tiles_run(family, schedule, monkeypatch):
    model = make_model(family)
    decoder = compile_decode_loop(model, workers=3, schedule=schedule)
    kernel, launches = decoder.kernel.kernel, []
    start = kernel.launch
    monkeypatch.setattr(kernel, "launch",
                        lambda *a, **o: launches.append(start(*a, **o)) or launches[-1])
    ids = [(7 * k) % 307 for k in range(1, 14)]
    decoder.logits(ids)
    rows = decoder.tiles.experts.rows
    (counts,) = task_counts(launches[0])
    for layer, expected in enumerate(chosen_experts(model, ids)):
        name = f"model.layers.{layer}.mlp"
        routed = np.sort(activation(decoder, f"{name}.topk_ids")[:len(ids)], axis=1)
        np.testing.assert_array_equal(routed, np.sort(expected, axis=1))
        loads = np.bincount(expected.ravel(), minlength=1)
        used = int((-(-loads // rows)).sum())
        for part in ("expert_gate_up", "expert_down"):
            call = next(c for c in decoder.graph.calls if c.name == f"{name}.{part}")
            bindings = {"tokens": len(ids), "logit_rows": len(ids), "context": 64, "kv_splits": 1}
            most, columns = (int(n.evaluate(bindings)) for n in call.tile_num)
            popped, skipped = counts[call.name]
            if NAMES[schedule].queues:
                assert (popped, skipped) == (used * columns, 0)
            else:
                assert popped == 0
                if call.is_triggered and schedule == "static":  # unfused: bodies see to it
                    assert skipped == (most - used) * columns


@pytest.mark.parametrize("family, schedule", turns([*FAMILIES][::-1], SCHEDULES))
def test_weights_of_untouched_experts_are_not_read(family, schedule):
    model = make_model(family)
    prompt, new_tokens = [5, 9], 3
    reference = compile_decode_loop(model, workers=2, schedule=schedule)
    output = reference.generate(prompt, max_new_tokens=new_tokens, ignore_eos=True).output_ids
    untouched = 0
    for layer, expected in zip(model.model.layers, chosen_experts(model, prompt + output[:-1]),
                               strict=True):
        for expert in set(range(reference.config.experts.num_experts)) - set(expected.ravel()):
            for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                weight.data[expert] = float("nan")
            untouched += 1
    assert untouched > 0
    poisoned = compile_decode_loop(model, workers=2, schedule=schedule)
    assert poisoned.generate(prompt, max_new_tokens=new_tokens,
                             ignore_eos=True).output_ids == output


@pytest.mark.parametrize("family, schedule", turns(list(FAMILIES), SCHEDULES))
def test_sixteen_prompts_at_once_give_what_each_gives_alone(family, schedule):
    decoder = compile_decode_loop(make_model(family), workers=2, schedule=schedule)
    prompts = [[(11 * k + 3 * p) % 307 for p in range(1 + 5 * k % 23)] for k in range(16)]
    together = decoder.generate(prompts, max_new_tokens=6, ignore_eos=True)
    for prompt, result in zip(prompts, together, strict=True):
        alone = decoder.generate(prompt, max_new_tokens=6, ignore_eos=True)
        assert result.output_ids == alone.output_ids
    assert decoder.compilations == 1
