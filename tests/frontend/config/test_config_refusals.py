"""What is wrong with a config is refused by the name of the field and with a remedy."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_config import FULL, LLAMA3, SLIDING, tiny

from event_tensor.errors import UserError
from frontend.families.read_config import parse_config, read_config

PER_LAYER_TYPE = {FULL: {"rope_theta": 1.0}, SLIDING: {"rope_theta": 2.0}}
REFUSALS = [
    ({"model_type": "gpt2"}, "model_type 'gpt2' is not supported; supported are llama"),
    ({"model_type": ["llama"]}, "model_type"),
    ({"model_type": None}, "model_type is missing"),
    ({"architectures": ["GemmaForCausalLM"]}, "architecture 'GemmaForCausalLM'.*Qwen3ForCausalLM"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ({"architectures": "LlamaForCausalLM"}, "architectures"),
    ({"architectures": ["Qwen2ForCausalLM"]}, "contradicts architectures"),
    ({"quantization_config": {"quant_method": "awq"}}, "'awq'.*not supported"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"compression_config": {"quant_method": "compressed-tensors"}}, "'compressed-tensors'"),
    ({"per_layer_config": {"0": {"head_dim": 4}}}, "per_layer_config"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'.*silu"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn' is not.*default, linear, llama3"),
    ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    ({"rope_scaling": {"type": "longrope"}}, "'longrope'"),
    ({"rope_scaling": {"type": 3}}, "rope type 3"),
    ({"rope_scaling": [2.0]}, "rope_scaling"),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
    ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "rope_parameters.factor is '2'"),
    ({"rope_parameters": {"rope_theta": 0}}, "rope_parameters.rope_theta is 0"),
    ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
    ({"rope_scaling": {"type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}, "must exceed"),
    ({"rope_parameters": PER_LAYER_TYPE}, "differs by layer type.*full_attention"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple.*4"),
    ({"head_dim": 7}, "head_dim is 7.*even"),
    ({"hidden_size": 4}, "head_dim is 0"),
    ({"hidden_size": "48"}, "hidden_size is '48'.*positive integer"),
    ({"hidden_size": 48.0}, "hidden_size is 48.0.*positive integer"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0.*positive integer"),
    ({"vocab_size": -1}, "vocab_size is -1"),
    ({"vocab_size": True}, "vocab_size is True"),
    ({"intermediate_size": None}, "intermediate_size is missing"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'.*true or false"),
    ({"attention_bias": 1}, "attention_bias is 1"),
    ({"dtype": "float8_e4m3fn"}, "dtype is 'float8_e4m3fn'.*float32, bfloat16, float16"),
    ({"torch_dtype": "float64"}, "torch_dtype is 'float64'"),
    ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
    ({"eos_token_id": [1, None]}, "eos_token_id"),
    ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0"),
    ({"model_type": "mistral", "layer_types": [FULL]}, "layer_types.*each of 3 layers"),
    ({"model_type": "qwen3", "layer_types": [FULL, "linear_attention", FULL]}, r"layer_types\[1\]"),
    ({"model_type": "qwen3", "layer_types": [FULL, SLIDING, FULL]}, "not in force"),
    ({"model_type": "qwen2", "max_window_layers": "all"}, "max_window_layers"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSALS)
def test_refuses_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_config(tiny(**fields), None)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value) or ", " in str(caught.value)  # a remedy follows the problem


def write_directory(directory: Path, content: bytes) -> Path:
    (directory / "config.json").write_bytes(content)
    return directory


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "holds a JSON list, not an object"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs pointer"),
    ],
)
def test_damaged_config_json(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_config(write_directory(tmp_path, content))


def test_directory_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no config.json"):
        read_config(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_config(tmp_path / "absent")
    write_directory(tmp_path, b"{}")
    with pytest.raises(UserError, match="is a file; give the model directory"):
        read_config(tmp_path / "config.json")
    with pytest.raises(UserError, match="cannot be read"):
        read_config(Path("a\0b"))
    (tmp_path / "generation_config.json").write_text("nonsense")
    with pytest.raises(UserError, match="generation_config.json is not valid JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match="config.json cannot be read"):
        read_config(tmp_path)


def test_unreadable_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot be read \(Permission denied\)"):
        read_config(tmp_path)


def test_reading_a_config_imports_nothing_heavy(tmp_path: Path) -> None:
    write_directory(tmp_path, json.dumps(tiny()).encode())
    code = (
        "import sys; from pathlib import Path; import frontend.families.read_config;"
        "import frontend.model_files.resolve, frontend.model_files.checkpoint;"
        "import frontend.model_files.tokenizer, frontend.graph.rope_tables;"
        f"frontend.families.read_config.read_config(Path({str(tmp_path)!r}));"
        "heavy = {'torch', 'transformers', 'safetensors', 'tokenizers', 'huggingface_hub'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
