"""Families are found by model_type, can be added from outside, and none replaces another."""

import subprocess
import sys
from dataclasses import replace

import pytest

from event_tensor.errors import UserError
from frontend.config.rope import RopeConfig
from frontend.families import Family, register_family, registry
from frontend.families.decoder import required_tensors
from frontend.families.dense_block import dense_block
from frontend.families.read_config import parse_config
from frontend.families.registry import BUILTIN_FAMILIES, families, family_of

OWN = Family("own", ("OwnForCausalLM", "OwnModel"), dense_block)
TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "vocab_size": 9,
        "num_attention_heads": 2, "max_position_embeddings": 64}


@pytest.fixture(autouse=True)
def own_registry(monkeypatch):
    families()  # all of this package are there before the copy
    monkeypatch.setattr(registry, "_families", dict(registry._families))


def test_a_family_of_this_package_is_the_module_of_its_name():
    assert tuple(families()) == BUILTIN_FAMILIES
    for name, family in families().items():
        assert family.model_type == name
        assert family_of({"architectures": [family.classes[1]]}, "config.json") is family


def test_one_from_outside_is_found_like_the_others():
    with pytest.raises(UserError, match="'own' is not supported; supported are llama"):
        parse_config(TINY | {"model_type": "own"}, None)
    assert register_family(OWN) is OWN
    assert register_family(OWN) is OWN  # again is no second one
    assert parse_config(TINY | {"architectures": ["OwnForCausalLM"]}, None).family == "own"
    with pytest.raises(UserError, match="supported are llama .*mixtral .*own .OwnForCausalLM"):
        parse_config(TINY | {"model_type": "other"}, None)


@pytest.mark.parametrize("name", ["llama", "own"])
def test_a_second_one_of_a_model_type_is_refused(name):
    register_family(OWN)
    with pytest.raises(UserError, match=f"model_type '{name}' has a family already; give the new"):
        register_family(replace(OWN, model_type=name, qk_norm=True))


def test_two_families_may_share_classes():
    register_family(replace(OWN, classes=("LlamaForCausalLM", "LlamaModel")))
    fields = TINY | {"architectures": ["LlamaForCausalLM"]}
    assert parse_config(fields | {"model_type": "own"}, None).family == "own"
    assert parse_config(fields, None).family == "llama"


def test_hooks_say_what_differs_by_layer_and_what_else_there_is():
    ropes = tuple(RopeConfig("default", theta) for theta in (10.0, 20.0, 10.0))
    register_family(replace(
        OWN, ropes=lambda fields, num_layers: ropes,
        windows=lambda fields, num_layers: (4, None, 8),
        refine=lambda fields, config: replace(config, rms_norm_eps=fields.number("epsilon"))))
    config = parse_config(TINY | {"model_type": "own", "epsilon": 0.5}, None)
    assert tuple(layer.rope for layer in config.layers) == ropes
    assert config.ropes == ropes[:2]
    assert [layer.window for layer in config.layers] == [4, None, 8]
    assert config.rms_norm_eps == 0.5


def test_what_must_exist_is_what_the_block_declares():
    def block(ops, layer, x):
        return ops.linear_residual(f"mix.{layer}", x, ops.weight(f"mix.{layer}.weight", 16, 16),
                                   None, x, 8)

    register_family(replace(OWN, block=block))
    config = parse_config(TINY | {"model_type": "own", "tie_word_embeddings": True}, None)
    assert required_tensors(config) == {
        "model.embed_tokens.weight": (9, 16), **{f"mix.{k}.weight": (16, 16) for k in range(3)},
        "model.norm.weight": (16,)}


def test_registering_imports_nothing_heavy():
    code = ("import sys; from frontend.families import Family, register_family;"
            "heavy = {'torch', 'transformers', 'numba', 'triton'};"
            "sys.exit(', '.join(heavy & set(sys.modules)) or None)")
    subprocess.run([sys.executable, "-c", code], check=True)
