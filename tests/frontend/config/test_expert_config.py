"""config.json of mixture-of-experts models, read as transformers reads it."""

from typing import Any

import pytest

from event_tensor.errors import UserError
from frontend.config.experts import ExpertConfig
from frontend.families.read_config import parse_config

LAYERS = 6
TINY: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": LAYERS,
    "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 99}
ALL = (True,) * LAYERS


def tiny(family: str = "qwen3_moe", **fields: object) -> dict[str, object]:
    return {"model_type": family, **TINY, **fields}


def transformers_model(family: str, **fields: Any) -> Any:
    """The modules without their data."""
    import torch
    import transformers

    config = transformers.CONFIG_MAPPING[family](**{**TINY, **fields})
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("family, fields, expected, is_sparse", [
    ("qwen3_moe", {}, ExpertConfig(128, 8, 768, False), ALL),
    ("qwen3_moe", {"num_experts": 5, "num_experts_per_tok": 3, "norm_topk_prob": True,
                   "moe_intermediate_size": 24}, ExpertConfig(5, 3, 24, True), ALL),
    ("qwen3_moe", {"num_local_experts": 5, "num_experts_per_tok": 5},
     ExpertConfig(5, 5, 768, False), ALL),
    ("qwen3_moe", {"decoder_sparse_step": 2},
     ExpertConfig(128, 8, 768, False), (False, True) * 3),
    ("qwen3_moe", {"mlp_only_layers": [0, 5]},
     ExpertConfig(128, 8, 768, False), (False, True, True, True, True, False)),
    ("qwen3_moe", {"mlp_only_layers": [1], "decoder_sparse_step": 2},
     ExpertConfig(128, 8, 768, False), (False, False, False, True, False, True)),
    ("qwen3_moe", {"decoder_sparse_step": LAYERS + 1}, None, (False,) * LAYERS),
    ("qwen3_moe", {"mlp_only_layers": list(range(LAYERS))}, None, (False,) * LAYERS),
    ("mixtral", {}, ExpertConfig(8, 2, 80, True), ALL),
    ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 1},
     ExpertConfig(4, 1, 80, True), ALL),
    ("mixtral", {"num_experts": 4}, ExpertConfig(4, 2, 80, True), ALL),
])
def test_experts_are_those_of_the_modules(family: str, fields: dict[str, Any],
                                          expected: ExpertConfig | None,
                                          is_sparse: tuple[bool, ...]) -> None:
    config = parse_config(tiny(family, **fields), None)
    assert config.experts == expected
    assert [layer.experts for layer in config.layers] == [
        expected if sparse else None for sparse in is_sparse]
    model = transformers_model(family, **fields)
    assert parse_config(model.config.to_dict(), None) == config
    for layer, module in enumerate(model.model.layers):
        assert hasattr(module.mlp, "experts") == is_sparse[layer]
        if is_sparse[layer]:
            assert expected is not None
            assert tuple(module.mlp.experts.down_proj.shape) == (
                expected.num_experts, config.hidden_size, expected.intermediate_size)
            assert module.mlp.gate.top_k == expected.top_k
            assert getattr(module.mlp.gate, "norm_topk_prob", True) == expected.norm_topk
        else:
            assert module.mlp.gate_proj.out_features == config.intermediate_size
        assert (module.self_attn.q_proj.bias is not None) == config.qkv_bias
        assert (module.self_attn.o_proj.bias is not None) == config.output_bias
        assert hasattr(module.self_attn, "q_norm") == config.qk_norm


@pytest.mark.parametrize("family, fields, window", [
    ("qwen3_moe", {"sliding_window": 8}, None),
    ("qwen3_moe", {"sliding_window": 8, "use_sliding_window": True}, 8),
    ("qwen3_moe", {"use_sliding_window": True}, 4096),
    ("qwen3_moe", {"sliding_window": None, "use_sliding_window": True}, None),
    ("mixtral", {}, None),
    ("mixtral", {"sliding_window": 8}, 8),
])
def test_one_window_for_every_layer(family: str, fields: dict[str, Any], window: int | None
                                    ) -> None:
    theirs = transformers_model(family, **fields).config
    assert theirs.sliding_window == window
    for values in (tiny(family, **fields), theirs.to_dict()):
        windows = [layer.window for layer in parse_config(values, None).layers]
        assert windows == [window] * LAYERS


def test_attention_biases() -> None:
    biased = parse_config(tiny(attention_bias=True), None)
    assert (biased.qkv_bias, biased.output_bias) == (True, True)
    ignored = parse_config(tiny("mixtral", attention_bias=True), None)
    assert (ignored.qkv_bias, ignored.output_bias) == (False, False)


def test_dense_families_have_no_experts() -> None:
    config = parse_config(tiny("qwen3", num_experts=4), None)
    assert config.experts is None
    assert not any(layer.experts for layer in config.layers)


@pytest.mark.parametrize("fields, message", [
    ({"num_experts": 4}, "num_experts_per_tok 8 exceeds the 4 experts; correct one"),
    ({"model_type": "mixtral", "num_experts_per_tok": 9}, "num_experts_per_tok 9 exceeds the 8"),
    ({"num_experts": 0}, "num_experts is 0; it must be a positive integer"),
    ({"num_local_experts": "8"}, "num_local_experts is '8'"),
    ({"num_experts": 8, "num_local_experts": 16},
     "num_experts 8 and num_local_experts 16 are two spellings"),
    ({"num_experts_per_tok": -1}, "num_experts_per_tok is -1"),
    ({"num_experts_per_tok": None}, "num_experts_per_tok is missing"),
    ({"moe_intermediate_size": 7.5}, "moe_intermediate_size is 7.5"),
    ({"norm_topk_prob": "yes"}, "norm_topk_prob is 'yes'; it must be true or false"),
    ({"decoder_sparse_step": 0}, "decoder_sparse_step is 0"),
    ({"mlp_only_layers": [LAYERS]}, r"mlp_only_layers is \[6\]; it must list layers from 0 to 5"),
    ({"mlp_only_layers": [-1]}, r"mlp_only_layers is \[-1\]"),
    ({"mlp_only_layers": [True]}, r"mlp_only_layers is \[True\]"),
    ({"mlp_only_layers": 2}, "mlp_only_layers is 2"),
    # OLMoE normalises queries over all heads at once
    ({"model_type": "olmoe"}, "'olmoe' is not supported; .*qwen3_moe.*mixtral"),
])
def test_refuses_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_config(tiny(**fields), None)
    assert "\n" not in str(caught.value)
