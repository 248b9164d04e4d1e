import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checked import check_tensors
from safetensors.torch import load_file, save_file

from event_tensor.errors import UserError
from frontend.config.decoder_config import DecoderConfig
from frontend.families.decoder import required_tensors
from frontend.families.read_config import parse_config, read_config
from frontend.families.registry import BUILTIN_FAMILIES
from frontend.model_files.checkpoint import (
    Checkpoint,
    canonical_name,
    from_model,
    open_checkpoint,
)
from persistent_runtime.storage import as_tensor

TINY: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 33,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in BUILTIN_FAMILIES),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
]


def make_model(family: str = "qwen3", **fields: Any) -> Any:
    import transformers

    config_class = transformers.CONFIG_MAPPING[family]
    return transformers.AutoModelForCausalLM.from_config(config_class(**{**TINY, **fields}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A qwen3 model in one file, in shards, and without its lm_head and `model.` prefix."""
    model = make_model()
    directories = {name: tmp_path_factory.mktemp(name) for name in ("single", "sharded", "bare")}
    model.save_pretrained(directories["single"])
    model.save_pretrained(directories["sharded"], max_shard_size="10KB")
    model.model.save_pretrained(directories["bare"])
    return directories


@pytest.fixture
def copy(saved: dict[str, Path], tmp_path: Path) -> Any:
    def copy_of(kind: str) -> Path:
        return Path(shutil.copytree(saved[kind], tmp_path / kind))

    return copy_of


def check(directory: Path) -> None:
    with open_checkpoint(directory) as checkpoint:
        check_tensors(checkpoint, read_config(directory))


@pytest.mark.parametrize(("family", "fields"), VARIANTS)
def test_required_tensors_are_those_of_the_model(family: str, fields: dict[str, Any]) -> None:
    model = make_model(family, **fields)
    config = parse_config(model.config.to_dict(), model.generation_config.to_dict())
    parameters = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert required_tensors(config) == parameters

    checkpoint = from_model(model)
    check_tensors(checkpoint, config)
    assert checkpoint.files == ()
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in model.parameters())
    for name, parameter in model.named_parameters():
        assert checkpoint.read(name).ctypes.data == parameter.data_ptr()


def tensor_of(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    return as_tensor(checkpoint.read(name), checkpoint.dtype(name))


@pytest.mark.parametrize("kind", ["single", "sharded"])
def test_reads_what_transformers_saves(kind: str, saved: dict[str, Path]) -> None:
    directory = saved[kind]
    expected: dict[str, torch.Tensor] = {}
    for path in directory.glob("*.safetensors"):
        expected |= load_file(path)
    checkpoint = open_checkpoint(directory)
    check_tensors(checkpoint, read_config(directory))
    assert (len(checkpoint.files) > 1) == (kind == "sharded")
    assert checkpoint.names() == set(expected)
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in expected.values())
    for name, tensor in expected.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == "float32"
        assert torch.equal(tensor_of(checkpoint, name), tensor)

    kept = tensor_of(checkpoint, "model.norm.weight")
    checkpoint.close()
    assert torch.equal(kept, expected["model.norm.weight"])
    with pytest.raises(UserError, match="closed; open it again"):
        checkpoint.read("model.norm.weight")
    with pytest.raises(UserError, match="has no tensor model.nothing"):
        checkpoint.shape("model.nothing")


def test_tensors_are_views_of_the_mapped_file(saved: dict[str, Path]) -> None:
    with open_checkpoint(saved["single"]) as checkpoint:
        tensor = checkpoint.read("lm_head.weight")
        assert tensor.ctypes.data == checkpoint.read("lm_head.weight").ctypes.data
    maps = Path("/proc/self/maps")
    if maps.exists():
        path = str(saved["single"] / "model.safetensors")
        mapped = [line.split()[0] for line in maps.read_text().splitlines() if path in line]
        spans = [[int(address, 16) for address in span.split("-")] for span in mapped]
        assert any(low <= tensor.ctypes.data < high for low, high in spans)


def test_names_without_the_model_prefix(saved: dict[str, Path]) -> None:
    checkpoint, config = open_checkpoint(saved["bare"]), read_config(saved["bare"])
    whole = open_checkpoint(saved["single"])
    assert checkpoint.names() == whole.names() - {"lm_head.weight"}
    for name in checkpoint.names():
        assert np.array_equal(checkpoint.read(name), whole.read(name))
    with pytest.raises(UserError, match="lacks the tensors lm_head.weight.*tie_word_embeddings"):
        check_tensors(checkpoint, config)
    assert canonical_name("norm.weight") == "model.norm.weight"
    assert canonical_name("lm_head.weight") == "lm_head.weight"


def test_inverse_frequencies_are_ignored_and_dtypes_may_mix(copy: Any) -> None:
    directory = copy("single")
    tensors = load_file(directory / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].bfloat16()
    tensors["lm_head.weight"] = tensors["lm_head.weight"].half()
    tensors["model.position_ids"] = torch.arange(3)
    save_file(tensors, directory / "model.safetensors")
    with open_checkpoint(directory) as checkpoint:
        check_tensors(checkpoint, read_config(directory))
        assert checkpoint.names() == set(tensors) - {
            "model.layers.0.self_attn.rotary_emb.inv_freq"
        }
        assert checkpoint.dtype("model.norm.weight") == "bfloat16"
        assert checkpoint.dtype("lm_head.weight") == "float16"


def replace_tensor(directory: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors.pop(name, None)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, directory / "model.safetensors")


WRONG_TENSORS = [
    ("model.layers.1.mlp.up_proj.weight", torch.zeros(40, 23),
     r"up_proj.weight has shape \[40, 23\], but config.json makes it \[40, 24\]"),
    ("model.norm.weight", None, "lacks the tensors model.norm.weight"),
    ("lm_head.weight", None, "set tie_word_embeddings"),
    ("model.norm.weight", torch.zeros(24, dtype=torch.int8), "model.norm.weight.*I8"),
    ("model.norm.weight", torch.zeros(24).to(torch.float8_e4m3fn), "model.norm.weight.*F8_E4M3"),
    ("model.layers.0.self_attn.o_proj.bias", torch.ones(24), "o_proj.bias is a bias"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "tensor", "message"), WRONG_TENSORS)
def test_wrong_tensors(name: str, tensor: torch.Tensor | None, message: str, copy: Any) -> None:
    directory = copy("single")
    replace_tensor(directory, name, tensor)
    with pytest.raises(UserError, match=message):
        check(directory)


def test_a_bias_of_zeros_is_no_contradiction(copy: Any) -> None:
    directory = copy("single")
    replace_tensor(directory, "model.layers.0.self_attn.o_proj.bias", torch.zeros(24))
    check(directory)


def test_many_missing_tensors_are_counted(saved: dict[str, Path]) -> None:
    config = parse_config({"model_type": "qwen3", **TINY, "num_hidden_layers": 4}, None)
    with pytest.raises(UserError, match=r"layers.2.input_layernorm.weight, .* and 19 more"):
        check_tensors(open_checkpoint(saved["single"]), config)


def test_a_tied_head_must_equal_the_embedding(copy: Any) -> None:
    directory = copy("single")
    fields = json.loads((directory / "config.json").read_text()) | {"tie_word_embeddings": True}
    (directory / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match="differs from model.embed_tokens.*set tie_word_embeddings"):
        check(directory)
    embedding = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    replace_tensor(directory, "lm_head.weight", embedding)
    check(directory)
    replace_tensor(directory, "lm_head.weight", None)
    check(directory)


def damage(directory: Path, how: str) -> None:
    path = directory / "model.safetensors"
    content = path.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:header_end]
    path.write_bytes(
        {
            "empty": b"",
            "seven bytes": content[:7],
            "half a header": content[: header_end // 2],
            "half the data": content[: (header_end + len(content)) // 2],
            "last byte": content[:-1],
            "trailing bytes": content + b"\0",
            "noise": b"\xff" * 64,
            "html": b"<!DOCTYPE html><html><body>Access denied</body></html>",
            "header not json": content[:8] + b"#" * len(header) + content[header_end:],
            "header a list": b"\x02" + bytes(7) + b"[]",
            "wrong shape": content.replace(b"[33,24]", b"[33,25]"),
            "wrong offsets": content.replace(b'"data_offsets":[', b'"data_offsets":["', 1),
            "git-lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        }[how]
    )


DAMAGES = {
    "empty": "not a complete safetensors file",
    "seven bytes": "not a complete safetensors file",
    "half a header": "not a complete safetensors file",
    "half the data": "header promises",
    "last byte": "header promises",
    "trailing bytes": "header promises",
    "noise": "not a complete safetensors file",
    "html": "not a complete safetensors file",
    "header not json": "header is not JSON",
    "header a list": "not a JSON object",
    "wrong shape": "describes the tensor .* inconsistently",
    "wrong offsets": "header is not JSON",
    "git-lfs": "git-lfs pointer.*git lfs pull",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_files(how: str, copy: Any) -> None:
    directory = copy("single")
    damage(directory, how)
    with pytest.raises(UserError, match=DAMAGES[how]) as caught:
        open_checkpoint(directory)
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_truncation_is_noticed(copy: Any) -> None:
    directory = copy("single")
    content = (directory / "model.safetensors").read_bytes()
    for size in range(0, len(content), 997):
        (directory / "model.safetensors").write_bytes(content[:size])
        with pytest.raises(UserError, match="model.safetensors"):
            open_checkpoint(directory)


def test_overlapping_tensors_are_refused(copy: Any) -> None:
    directory = copy("single")
    path = directory / "model.safetensors"
    save_file({"a": torch.zeros(4), "b": torch.ones(4)}, path)
    whole = path.read_bytes()
    for begin, end in ((9, 25), (16, 32), (0, 16)):
        path.write_bytes(whole.replace(b"[0,16]", f"[{begin},{end}]".encode().ljust(6)))
        if begin == 0:
            assert open_checkpoint(directory).read("b").tolist() == [1, 1, 1, 1]
            continue
        with pytest.raises(UserError, match="safetensors file: .*download it again"):
            open_checkpoint(directory)


def test_sharded_mistakes(copy: Any) -> None:
    directory = copy("sharded")
    index_path = directory / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    name, shard = next(iter(index["weight_map"].items()))

    (directory / shard).rename(directory / "away")
    with pytest.raises(UserError, match=f"by the index model.* is in .*{shard}, .* not there"):
        check(directory)
    index_path.write_text(json.dumps({"weight_map": {name: shard}}))
    with pytest.raises(UserError, match=f"lacks {shard}, which model.safetensors.index.json names"):
        open_checkpoint(directory)
    (directory / "away").rename(directory / shard)

    for content, message in (
        ({"weight_map": index["weight_map"] | {name: "../x"}}, "must name a file"),
        ({"weight_map": index["weight_map"] | {name: 3}}, "must name a file"),
        ({"weight_map": {}}, "has no weight_map"),
        ({}, "has no weight_map"),
        ([], "not an object"),
    ):
        index_path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            open_checkpoint(directory)

    index_path.unlink()
    with pytest.raises(UserError, match="neither model.safetensors nor"):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("pytorch_model.bin", r"PyTorch pickle weights \(pytorch_model.bin\).*save_pretrained"),
        ("model-q4.gguf", "GGUF weights"),
        (None, "holds no weights; it needs model.safetensors"),
    ],
)
def test_other_formats_are_refused(file: str | None, message: str, tmp_path: Path) -> None:
    if file:
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path)


def test_directory_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_checkpoint(tmp_path / "absent")
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(UserError, match="model.safetensors cannot be read"):
        open_checkpoint(tmp_path)


def test_models_that_cannot_be_used() -> None:
    with pytest.raises(UserError, match="the model is a dict"):
        from_model({})
    with torch.device("meta"), pytest.raises(UserError, match="has no data for .*load its weights"):
        from_model(torch.nn.Linear(2, 2))
    assert isinstance(from_model(torch.nn.Linear(2, 2)), Checkpoint)
    model = make_model().to(torch.float64)
    config: DecoderConfig = parse_config({"model_type": "qwen3", **TINY}, None)
    with pytest.raises(UserError, match="the loaded model: tensor .* element type float64"):
        check_tensors(from_model(model), config)
