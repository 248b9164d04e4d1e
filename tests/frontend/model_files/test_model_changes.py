"""A changed model object is refused by the name of what has changed."""

import copy
import random
import types

import pytest
import torch
import transformers
from changed_models import Adapted, Adapter, check, hook, make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_model
from torch import nn

from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop
from frontend.families.registry import family_named
from frontend.model_files.model_changes import OF_TRAINING


def random_loaded_model(seed):
    given = random_model(seed)
    config = transformers.CONFIG_MAPPING[given.family](**given.fields)
    return getattr(transformers, family_named(given.family).classes[0])(config)


def set_hook(model, module):
    module.register_forward_hook(hook)


def set_pre_hook(model, module):
    module.register_forward_pre_hook(hook)


def replace_forward(model, module):
    module.forward = types.MethodType(type(module).forward, copy.copy(module))


def decorate_forward(model, module):
    original = module.forward
    module.forward = lambda *arguments, **options: original(*arguments, **options)


def change_class(model, module):
    module.__class__ = type("Changed", (type(module),), {"forward": hook})


def change_constant(model, module):
    for name, value in vars(module).items():
        is_used = not name.startswith("_") and name not in OF_TRAINING
        if type(value) in (int, float) and is_used:
            setattr(module, name, value + 1)
            return
    set_hook(model, module)


def add_adapter(model, module):
    [place] = [name for name, found in model.named_modules() if found is module]
    if isinstance(module, nn.Linear):
        model.set_submodule(place, Adapter(module))
    else:
        set_hook(model, module)


CHANGES = (set_hook, set_pre_hook, replace_forward, decorate_forward, change_class,
           change_constant, add_adapter)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), change=st.sampled_from(CHANGES))
def test_a_change_anywhere_in_any_model_is_noticed_and_named(seed, change):
    model = random_loaded_model(seed)
    check(model)
    rng = random.Random(seed)
    place, module = rng.choice([(name, module) for name, module in model.named_modules()
                                if type(module).__name__ != "Dropout"])
    change(model, module)
    with pytest.raises(UserError, match=place.replace(".", r"\.")) as caught:
        check(model)
    assert ";" in str(caught.value)


def test_the_decoder_itself_refuses_a_changed_model():
    model = make_model()
    handle = model.model.layers[1].mlp.register_forward_hook(hook)
    with pytest.raises(UserError, match="model.layers.1.mlp has the forward hook hook"):
        compile_decode_loop(model)
    handle.remove()
    check(model)


def test_adapters_that_cannot_be_merged_are_refused():
    adapted = Adapted(make_model(), ["model.layers.0.mlp.up_proj"])
    adapter = adapted.get_submodule("base_model.model.layers.0.mlp.up_proj")
    adapter.disable_adapters = True
    with pytest.raises(UserError, match="adapters of this Adapted are disabled"):
        check(adapted)
    adapter.disable_adapters = False
    handle = adapter.register_forward_hook(hook)
    with pytest.raises(UserError, match="mlp.up_proj has the forward hook"):
        check(adapted)
    handle.remove()
    adapted.places = ["nowhere"]
    with pytest.raises(UserError, match="do not merge .*nowhere.*; merge them"):
        check(adapted)


class Linear4bit(nn.Linear):
    def forward(self, x):
        return super().forward(x)


def quantized(model):
    model.model.layers[0].mlp.up_proj = Linear4bit(32, 48, bias=False)


def remove_layer(model):
    model.model.layers = model.model.layers[:1]


def sparse(model):
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().to_sparse())


def packed(model):
    model.model.norm.weight = type("Packed", (nn.Parameter,), {})(torch.ones(32))


def own_attention(model):
    model.config._attn_implementation_internal = "sinks"


def other_epsilon(model):
    model.config.rms_norm_eps = 1e-3


def other_theta(model):
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 50.0}


def other_frequencies(model):
    model.model.rotary_emb.inv_freq /= 2


def scripted(model):
    up_proj = model.model.layers[0].mlp.up_proj
    model.model.layers[0].mlp.up_proj = torch.jit.trace(up_proj, torch.ones(1, 32))


REFUSED = {
    "model.rotary_emb has other frequencies .inv_freq. than": other_frequencies,
    "other frequencies .* than the rope_parameters": other_theta,
    r"up_proj is a torch \w+, where the config makes it a Linear": scripted,
    r"model.layers.0.mlp.up_proj is a \w+ Linear4bit, where": quantized,
    "has no module model.layers.1": remove_layer, "lm_head.weight is a Parameter": sparse,
    "model.norm.weight is a Packed": packed, "computes attention by 'sinks'": own_attention,
    "variance_epsilon=1e-06, where the config makes it 0.001": other_epsilon}


@pytest.mark.parametrize("message", REFUSED)
def test_other_changes_are_refused_by_name(message):
    model = make_model()
    REFUSED[message](model)
    with pytest.raises(UserError, match=message):
        check(model)


def test_hooks_for_all_modules_and_patched_classes_are_refused(monkeypatch):
    model = make_model()
    handle = nn.modules.module.register_module_forward_hook(hook)
    with pytest.raises(UserError, match="hooks for all modules"):
        check(model)
    handle.remove()
    monkeypatch.setattr(type(model.model.norm), "forward", lambda self, x: x)
    with pytest.raises(UserError, match="LlamaRMSNorm.forward was replaced by .*lambda"):
        check(model)


def test_attention_replaced_under_its_name_is_refused(monkeypatch):
    model = make_model()
    functions = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
    monkeypatch.setitem(functions, model.config._attn_implementation, hook)
    with pytest.raises(UserError, match="attention 'sdpa' was replaced by hook of"):
        check(model)


def test_other_classes_are_refused_by_name():
    config = make_model().config
    for model, name in ((transformers.LlamaForSequenceClassification(config), "Classification"),
                        (nn.DataParallel(nn.Linear(2, 2)), "Linear is neither a path")):
        with pytest.raises(UserError, match=name):
            compile_decode_loop(model)
