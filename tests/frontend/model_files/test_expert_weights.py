"""Expert weights from every layout that transformers writes: packed, or one by one."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checked import check_tensors, open_checkpoint
from safetensors.torch import load_file, save_file

from event_tensor.errors import UserError
from frontend.config.decoder_config import DecoderConfig
from frontend.families.decoder import required_tensors
from frontend.families.read_config import parse_config, read_config
from frontend.families.registry import family_named
from frontend.model_files.checkpoint import Checkpoint, canonical_name, from_model
from frontend.model_files.expert_weights import read_weight
from persistent_runtime.storage import as_tensor

TINY: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 33, "num_experts_per_tok": 2}
FIELDS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 10, "mlp_only_layers": [1]},
    "mixtral": {"num_local_experts": 4}}
SPELLING = {"qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj"),
            "mixtral": ("block_sparse_moe", "w1", "w3", "w2")}
LAYOUTS = ("hub", "packed", "sharded")


def make_model(family: str, **fields: Any) -> Any:
    import transformers

    config = transformers.CONFIG_MAPPING[family](
        **{**TINY, **FIELDS[family], **fields})
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module", params=FIELDS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(family: str) -> Any:
    return make_model(family)


@pytest.fixture(scope="module")
def saved(model: Any, family: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directories = {layout: tmp_path_factory.mktemp(f"{family}-{layout}") for layout in LAYOUTS}
    model.save_pretrained(directories["hub"])
    model.save_pretrained(directories["packed"], save_original_format=False)
    model.save_pretrained(directories["sharded"], max_shard_size="8KB")
    return directories


@pytest.fixture
def copy(saved: dict[str, Path], tmp_path: Path) -> Any:
    return lambda layout: Path(shutil.copytree(saved[layout], tmp_path / layout))


def config_of(model: Any) -> DecoderConfig:
    return parse_config(model.config.to_dict(), None)


def change_tensors(directory: Path, change: Any) -> None:
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def check(directory: Path) -> None:
    with open_checkpoint(directory) as checkpoint:
        check_tensors(checkpoint, read_config(directory))


def test_required_tensors_are_those_of_the_model(model: Any) -> None:
    parameters = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    assert required_tensors(config_of(model)) == parameters


def test_a_loaded_model_is_used_in_place(model: Any) -> None:
    checkpoint, config = from_model(model), config_of(model)
    check_tensors(checkpoint, config)
    parameters = dict(model.named_parameters())
    for name, shape in required_tensors(config).items():
        weight = read_weight(checkpoint, name, shape, "float32")
        assert weight.ctypes.data == parameters[name].data_ptr()
        assert weight.flags.c_contiguous


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_model(model: Any, saved: dict[str, Path], layout: str) -> None:
    directory = saved[layout]
    config = read_config(directory)
    with open_checkpoint(directory) as checkpoint:
        check_tensors(checkpoint, config)
        singles = [name for name in checkpoint.names() if ".mlp.experts.0." in name]
        assert bool(singles) == (layout != "packed")
        assert (len(checkpoint.files) > 1) == (layout == "sharded")
        for name, parameter in model.named_parameters():
            weight = read_weight(checkpoint, name, tuple(parameter.shape), "float32")
            assert torch.equal(as_tensor(weight, "float32"), parameter)
            assert weight.flags.c_contiguous


def test_packed_files_are_not_copied(saved: dict[str, Path]) -> None:
    with open_checkpoint(saved["packed"]) as checkpoint:
        name = "model.layers.0.mlp.experts.gate_up_proj"
        arrays = [read_weight(checkpoint, name, checkpoint.shape(name), "float32") for _ in "ab"]
        places = {array.ctypes.data for array in (*arrays, checkpoint.read(name))}
        assert len(places) == 1


def test_old_files_of_a_bare_decoder(copy: Any, family: str, model: Any) -> None:
    """Names without `model.`, as a decoder saved without its head has them."""
    directory = copy("hub")
    change_tensors(directory, lambda tensors: [
        tensors.update({name.removeprefix("model."): tensors.pop(name)}) for name in list(tensors)])
    check(directory)


def expert_name(family: str, expert: int = 3, linear: int = 1) -> str:
    block, *linears = SPELLING[family]
    return f"model.layers.2.{block}.experts.{expert}.{linears[linear]}.weight"


def test_a_missing_expert_is_named(copy: Any, family: str) -> None:
    directory = copy("hub")
    change_tensors(directory, lambda tensors: tensors.pop(expert_name(family)))
    missing = canonical_name(expert_name(family), family_named(family).tensor_name)
    assert missing == "model.layers.2.mlp.experts.3.up_proj.weight"
    with pytest.raises(UserError, match=f"lacks the tensors {re.escape(missing)}, which config"):
        check(directory)


def test_a_layer_without_experts_is_named(copy: Any, family: str) -> None:
    directory = copy("packed")
    change_tensors(directory, lambda tensors: [
        tensors.pop(f"model.layers.2.mlp.experts.{packed}")
        for packed in ("gate_up_proj", "down_proj")])
    with pytest.raises(UserError, match=r"layers.2.mlp.experts.0.gate_proj.weight, .* 9 more"):
        check(directory)


def test_an_expert_of_another_shape_is_named(copy: Any, family: str) -> None:
    directory = copy("hub")
    inner = {"qwen3_moe": 10, "mixtral": 40}[family]
    change_tensors(directory, lambda tensors: tensors.update(
        {expert_name(family, linear=2): torch.zeros(24, inner + 1)}))
    message = (rf"experts.3.down_proj.weight has shape \[24, {inner + 1}\], but config.json makes "
               rf"it \[24, {inner}\]")
    with pytest.raises(UserError, match=message):
        check(directory)


@pytest.mark.parametrize("layout", ["hub", "packed"])
def test_more_experts_in_the_file_than_in_the_config(copy: Any, layout: str) -> None:
    directory = copy(layout)
    path = directory / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"num_local_experts": 3}))
    with pytest.raises(UserError, match=r"gate.weight has shape \[4, 24\], but .* \[3, 24\]"):
        check(directory)


def test_dense_and_sparse_layers_are_told_apart(copy: Any) -> None:
    directory = copy("hub")
    path = directory / "config.json"
    fields = json.loads(path.read_text()) | FIELDS["qwen3_moe"] | {"mlp_only_layers": [0, 1]}
    if fields["model_type"] == "qwen3_moe":
        path.write_text(json.dumps(fields))
        with pytest.raises(UserError, match=r"lacks the tensors model.layers.0.mlp.gate_proj"):
            check(directory)


def test_types_of_experts_may_mix(copy: Any, family: str) -> None:
    directory = copy("hub")
    change_tensors(directory, lambda tensors: tensors.update(
        {expert_name(family): tensors[expert_name(family)].bfloat16()}))
    with open_checkpoint(directory) as checkpoint:
        config = read_config(directory)
        check_tensors(checkpoint, config)
        name = "model.layers.2.mlp.experts.gate_up_proj"
        for dtype in ("float32", "bfloat16"):
            weight = as_tensor(read_weight(checkpoint, name, required_tensors(config)[name], dtype),
                               dtype)
            rows = weight.shape[1] // 2
            for expert in range(len(weight)):
                for linear, half in zip(("gate", "up"), weight[expert].split(rows), strict=True):
                    part = f"model.layers.2.mlp.experts.{expert}.{linear}_proj.weight"
                    single = as_tensor(checkpoint.read(part), checkpoint.dtype(part))
                    assert torch.equal(half, single.to(half.dtype))


def test_an_expert_in_an_unsupported_type_is_named(copy: Any, family: str) -> None:
    directory = copy("hub")
    change_tensors(directory, lambda tensors: tensors.update(
        {expert_name(family): tensors[expert_name(family)].to(torch.int8)}))
    with pytest.raises(UserError, match=re.escape(expert_name(family)) + ".*I8"):
        check(directory)


def test_a_bias_of_an_expert_is_not_dropped_in_silence(copy: Any, family: str) -> None:
    directory = copy("hub")
    bias = expert_name(family).removesuffix("weight") + "bias"
    change_tensors(directory, lambda tensors: tensors.update({bias: torch.ones(10)}))
    with pytest.raises(UserError, match="experts.3.up_proj.bias is a bias"):
        check(directory)


def test_packing_needs_a_checkpoint_with_something_in_it() -> None:
    with pytest.raises(UserError, match="no tensor model.layers.0.mlp.experts.0.down_proj"):
        read_weight(Checkpoint({}), "model.layers.0.mlp.experts.down_proj", (1, 2, 3), "float32")
