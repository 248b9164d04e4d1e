"""config.json, read as transformers reads it."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_config import FULL, LLAMA3, SLIDING, TINY, tiny

from event_tensor.errors import UserError
from frontend.config.decoder_config import DecoderConfig
from frontend.config.rope import RopeConfig
from frontend.families.read_config import parse_config, read_config
from frontend.families.registry import BUILTIN_FAMILIES


def transformers_config(family: str, **fields: object) -> Any:
    import transformers

    return transformers.CONFIG_MAPPING[family](**{**TINY, **fields})


def check_against(theirs: Any, family: str, **expected: object) -> None:
    """Every field that transformers resolved, and every expected one, is what we read."""
    config = parse_config(theirs.to_dict(), None)
    assert config.family == family
    assert config.num_layers == theirs.num_hidden_layers
    assert config.num_heads == theirs.num_attention_heads
    assert config.num_kv_heads == theirs.num_key_value_heads
    default_head_dim = theirs.hidden_size // theirs.num_attention_heads
    assert config.head_dim == (getattr(theirs, "head_dim", None) or default_head_dim)
    for name in (
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "rms_norm_eps",
        "max_position_embeddings",
        "tie_word_embeddings",
        "bos_token_id",
    ):
        assert getattr(config, name) == getattr(theirs, name), name
    for rope in config.ropes:
        assert rope.rope_type == theirs.rope_parameters["rope_type"]
        assert rope.theta == theirs.rope_parameters["rope_theta"]
    for name, value in expected.items():
        assert getattr(config, name) == value, name


@pytest.mark.parametrize("family", BUILTIN_FAMILIES)
def test_reads_what_transformers_resolves(family: str) -> None:
    check_against(transformers_config(family), family)
    check_against(
        transformers_config(
            family,
            head_dim=16,
            rms_norm_eps=1e-5,
            max_position_embeddings=77,
            tie_word_embeddings=True,
            bos_token_id=3,
            eos_token_id=[4, 5],
            rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0},
        ),
        family,
        eos_token_ids=(4, 5),
        ropes=(RopeConfig("linear", 500.0, 3.0),),
    )


@pytest.mark.parametrize("family", BUILTIN_FAMILIES)
def test_reads_what_transformers_saves(family: str, tmp_path: Path) -> None:
    theirs = transformers_config(family, dtype="bfloat16", eos_token_id=7)
    theirs.save_pretrained(tmp_path)
    assert read_config(tmp_path) == parse_config(theirs.to_dict(), None)
    assert read_config(tmp_path).dtype == "bfloat16"


@pytest.mark.parametrize("family", BUILTIN_FAMILIES)
def test_absent_fields_take_the_defaults_of_transformers(family: str) -> None:
    import transformers

    theirs = transformers.CONFIG_MAPPING[family]()
    required = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    minimal = {name: getattr(theirs, name) for name in (*required, "vocab_size")}
    from_minimal = parse_config({"model_type": family, **minimal}, None)
    assert from_minimal == parse_config(theirs.to_dict(), None)
    assert from_minimal.dtype is None
    for name in (*required, "vocab_size"):
        partial = {key: value for key, value in minimal.items() if key != name}
        with pytest.raises(UserError, match=f"the field {name} is missing"):
            parse_config({"model_type": family, **partial}, None)


BIASES = [
    ("llama", {}, (False, False, False)),
    ("llama", {"attention_bias": True}, (True, True, False)),
    ("llama", {"mlp_bias": True}, (False, False, True)),
    ("qwen2", {}, (True, False, False)),
    ("qwen3", {}, (False, False, False)),
    ("qwen3", {"attention_bias": True}, (True, True, False)),
    ("mistral", {"attention_bias": True}, (False, False, False)),
]


@pytest.mark.parametrize(("family", "fields", "biases"), BIASES)
def test_biases_are_those_of_the_modules(
    family: str, fields: dict[str, bool], biases: tuple[bool, bool, bool]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    theirs = transformers_config(family, **fields)
    config = parse_config(theirs.to_dict(), None)
    assert (config.qkv_bias, config.output_bias, config.mlp_bias) == biases
    with torch.device("meta"):
        layer = AutoModelForCausalLM.from_config(theirs).model.layers[0]
    for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
        assert (linear.bias is not None) == config.qkv_bias
    assert (layer.self_attn.o_proj.bias is not None) == config.output_bias
    for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
        assert (linear.bias is not None) == config.mlp_bias
    assert hasattr(layer.self_attn, "q_norm") == config.qk_norm


WINDOWS = [
    ("llama", {"sliding_window": 8}, (None, None, None)),
    ("mistral", {}, (4096, 4096, 4096)),
    ("mistral", {"sliding_window": 8}, (8, 8, 8)),
    ("mistral", {"sliding_window": None}, (None, None, None)),
    ("mistral", {"sliding_window": 8, "layer_types": [FULL, SLIDING, FULL]}, (None, 8, None)),
    ("qwen2", {"sliding_window": 8}, (None, None, None)),
    ("qwen2", {"sliding_window": 8, "use_sliding_window": True}, (None, None, None)),
    ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1},
     (None, 8, 8)),
    ("qwen3", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}, (8, 8, 8)),
    ("qwen3", {"sliding_window": 8, "use_sliding_window": True,
               "layer_types": [SLIDING, FULL, SLIDING]}, (8, None, 8)),
    ("qwen3", {"sliding_window": 8, "use_sliding_window": False,
               "layer_types": [FULL, "attention", FULL]}, (None, None, None)),
]  # fmt: skip


def windows_of(config: DecoderConfig) -> tuple[int | None, ...]:
    return tuple(layer.window for layer in config.layers)


@pytest.mark.parametrize(("family", "fields", "windows"), WINDOWS)
def test_sliding_windows(family: str, fields: dict[str, Any], windows: tuple[int | None]) -> None:
    from transformers import AutoConfig

    raw = tiny(family, **fields)
    assert windows_of(parse_config(raw, None)) == windows
    if "layer_types" in fields and family == "mistral":  # transformers makes it a ministral
        return
    theirs = AutoConfig.for_model(family, **{k: v for k, v in raw.items() if k != "model_type"})
    assert windows_of(parse_config(theirs.to_dict(), None)) == windows


ROPES = [
    ({}, RopeConfig("default", 10000.0)),
    ({"rope_theta": 500}, RopeConfig("default", 500.0)),
    ({"rope_theta": 500.0, "rope_scaling": None}, RopeConfig("default", 500.0)),
    ({"rope_parameters": {"rope_theta": 500.0}}, RopeConfig("default", 500.0)),
    ({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2}},
     RopeConfig("linear", 500.0, 2.0)),
    ({"rope_theta": 500.0, "rope_parameters": {"rope_type": "linear", "factor": 2.0}},
     RopeConfig("linear", 500.0, 2.0)),
    ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 9.0},
      "rope_scaling": {"type": "linear", "factor": 4.0}}, RopeConfig("linear", 10000.0, 4.0)),
    ({"rope_theta": 500.0, "rope_scaling": {
        "rope_type": "llama3", "original_max_position_embeddings": 64, **LLAMA3}},
     RopeConfig("llama3", 500.0, 8.0, 1.0, 4.0, 64)),
    ({"max_position_embeddings": 640, "rope_scaling": {"type": "llama3", **LLAMA3}},
     RopeConfig("llama3", 10000.0, 8.0, 1.0, 4.0, 640)),
    ({"original_max_position_embeddings": 32, "rope_parameters": {
        "rope_type": "llama3", "original_max_position_embeddings": 64, **LLAMA3}},
     RopeConfig("llama3", 10000.0, 8.0, 1.0, 4.0, 32)),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "rope"), ROPES)
def test_old_and_new_rope_fields(fields: dict[str, Any], rope: RopeConfig) -> None:
    from transformers import LlamaConfig

    assert parse_config(tiny(**fields), None).ropes == (rope,)
    theirs = LlamaConfig(**TINY, **json.loads(json.dumps(fields)))
    assert parse_config(theirs.to_dict(), None).ropes == (rope,)


def test_generation_config_overrides_the_end_token() -> None:
    fields = tiny(eos_token_id=5, bos_token_id=-1)
    assert parse_config(fields, None).eos_token_ids == (5,)
    assert parse_config(fields, None).bos_token_id is None
    assert parse_config(fields, {"eos_token_id": [6, 7, 6]}).eos_token_ids == (6, 7)
    assert parse_config(fields, {"bos_token_id": 1}).bos_token_id == 1
    assert parse_config(fields, {"temperature": 0.6}).eos_token_ids == (5,)
    assert parse_config(fields, {"eos_token_id": None}).eos_token_ids == ()


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "torch.float32", "torch_dtype": "float16"}, "float32"),
        ({"dtype": "auto"}, None),
        ({}, None),
    ],
)
def test_dtype(fields: dict[str, str], dtype: str | None) -> None:
    assert parse_config(tiny(**fields), None).dtype == dtype


def test_architecture_alone_names_the_family() -> None:
    fields = tiny(architectures=["Qwen3ForCausalLM"])
    del fields["model_type"]
    assert parse_config(fields, None).family == "qwen3"
    assert parse_config(tiny(architectures=["LlamaModel"]), None).family == "llama"
