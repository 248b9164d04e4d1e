"""What computes the same as the config says is accepted, and gives the logits of the object."""

import copy

import numpy as np
import pytest
import torch
from changed_models import IDS, Adapted, check, make_model, same_logits
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from frontend.compile import compile_decode_loop


def used(model):
    model(torch.tensor([IDS]), output_hidden_states=True, output_attentions=True)
    return model


def compiled_in_place(model):
    model.compile(backend="eager")
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compiled_inside(model):
    model.model.layers[0] = torch.compile(model.model.layers[0], backend="eager")
    model.lm_head = torch.compile(model.lm_head, backend="eager")
    return model


def in_training(model):
    model.gradient_checkpointing_enable()
    model.config.pad_token_id, model.config.use_cache = 3, False
    return model.train()


def subclassed(model):
    model.__class__ = type("Mine", (type(model),), {"answer": lambda self: 42})
    return model


def placed(model):
    hook = type("AlignDevicesHook", (), {"offload": False})()
    for module in model.modules():
        module._hf_hook, module._old_forward = hook, module.forward
        module.forward = lambda *arguments, module=module: module._old_forward(*arguments)
    return model


HARMLESS = {
    "unchanged": lambda model: model, "used": used, "in training": in_training,
    "torch.compile": lambda model: torch.compile(model, backend="eager"), "placed": placed,
    "compiled in place": compiled_in_place, "compiled inside": compiled_inside,
    "data parallel": nn.DataParallel, "a subclass": subclassed,
    "both": lambda model: nn.DataParallel(torch.compile(model, backend="eager"))}


@pytest.mark.parametrize("how", HARMLESS)
def test_what_computes_the_same_is_accepted(how):
    model = make_model(attention_dropout=0.5)
    expected = copy.deepcopy(model).state_dict()
    checkpoint = check(HARMLESS[how](model))
    assert checkpoint.names() == set(expected)
    for name, tensor in expected.items():
        assert np.array_equal(checkpoint.read(name), tensor.numpy())


def test_a_compiled_model_and_merged_adapters_give_transformers_logits():
    """The user's object stays as it is, adapters and all."""
    model = make_model()
    decoder = compile_decode_loop(torch.compile(model, backend="eager"))
    same_logits(decoder, model)
    plain = decoder.logits(IDS)
    adapted = Adapted(model, ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"])
    before = copy.deepcopy(adapted.state_dict())
    for wrapped in (adapted, torch.compile(adapted, backend="eager")):
        decoder = compile_decode_loop(wrapped)
        same_logits(decoder, adapted)
        assert np.abs(decoder.logits(IDS) - plain).max() > 1e-3
    after = adapted.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_computed_weights_are_read_as_they_are_computed():
    model = make_model()
    layers, plain = model.model.layers, copy.deepcopy(model)
    parametrizations.weight_norm(layers[0].mlp.up_proj)
    parametrizations.spectral_norm(layers[0].self_attn.q_proj)
    parametrize.register_parametrization(layers[1].self_attn.o_proj, "weight", Doubled())
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(layers[1].mlp.down_proj)
    layers[1].mlp.down_proj.weight_g.data *= 1.5
    nn.utils.spectral_norm(layers[1].self_attn.k_proj).eval()
    prune.l1_unstructured(layers[0].mlp.gate_proj, "weight", 0.4)
    prune.random_unstructured(layers[0].mlp.gate_proj, "weight", 0.2)
    decoder = compile_decode_loop(model)
    same_logits(decoder, model)
    changed, unchanged = decoder.logits(IDS), compile_decode_loop(plain).logits(IDS)
    assert np.abs(changed - unchanged).max() > 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_of_the_whole_model_is_accepted(dtype):
    for theta in (100.0, 1e4, 1e6, 5e7):
        check(make_model(rope_theta=theta, head_dim=64).to(dtype))


def test_a_resized_vocabulary_is_accepted():
    model = make_model()
    model.resize_token_embeddings(320)
    same_logits(compile_decode_loop(model), model)
