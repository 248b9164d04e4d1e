"""An index that is wrong about tensors nobody needs: transformers loads them, and so do we."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from checked import check_tensors
from safetensors.torch import load_file, save_file

from event_tensor.errors import UserError
from frontend.families.read_config import read_config
from frontend.model_files.checkpoint import open_checkpoint
from persistent_runtime.storage import as_tensor

INDEX = "model.safetensors.index.json"
WeightMap = dict[str, str]  # tensor → shard
# what is done to the index, given a tensor, its shard and another shard
CHANGES: dict[str, Callable[[WeightMap, str, str, str], WeightMap]] = {
    "a tensor that nobody has": lambda index, name, shard, other: index | {"model.old": shard},
    "a shard that nobody has": lambda index, name, shard, other: index | {"model.old": "old"},
    "a tensor placed in another shard": lambda index, name, shard, other: index | {name: other},
    "a tensor that is not named": lambda index, name, shard, other: {
        key: file for key, file in index.items() if key != name},
    "no tensor named": lambda index, name, shard, other: {
        str(k): file for k, file in enumerate(sorted(set(index.values())))}}


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, vocab_size=33)).save_pretrained(tmp_path, max_shard_size="10KB")
    return tmp_path


def weight_map(directory: Path) -> WeightMap:
    index: dict[str, WeightMap] = json.loads((directory / INDEX).read_text())
    return index["weight_map"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("twice", [False, True])
def test_the_tensors_are_those_that_transformers_loads(
        sharded: Path, change: str, twice: bool) -> None:
    index = weight_map(sharded)
    shard, other = sorted(set(index.values()))[:2]
    name = next(name for name, file in index.items() if file == shard)
    if twice:  # in two shards, with other values in the second
        copy = torch.ones_like(load_file(sharded / shard)[name])
        save_file(load_file(sharded / other) | {name: copy}, sharded / other, {"format": "pt"})
    changed = {"metadata": {}, "weight_map": CHANGES[change](index, name, shard, other)}
    (sharded / INDEX).write_text(json.dumps(changed))

    checkpoint = open_checkpoint(sharded)
    check_tensors(checkpoint, read_config(sharded))
    if change == "a shard that nobody has":  # transformers opens it
        save_file({}, sharded / "old", {"format": "pt"})
    model = transformers.AutoModelForCausalLM.from_pretrained(sharded)
    for key, tensor in model.state_dict().items():
        assert torch.equal(as_tensor(checkpoint.read(key), checkpoint.dtype(key)), tensor), key


@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_a_needed_tensor_that_its_shard_lacks_is_named_with_the_shard(
        sharded: Path, name: str) -> None:
    shard = sharded / weight_map(sharded)[name]
    save_file({key: t for key, t in load_file(shard).items() if key != name}, shard)
    with pytest.raises(UserError, match=f"by the index {name} is in {shard}, but it lacks that"):
        check_tensors(open_checkpoint(sharded), read_config(sharded))
