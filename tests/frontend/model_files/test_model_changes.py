"""A changed model object is unwrapped, merged, or refused by the name of what has changed."""

import copy
import random
import types

import numpy as np
import pytest
import torch
import transformers
from checked import check_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from random_models import random_model
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop
from frontend.families.read_config import parse_config
from frontend.families.registry import family_named
from frontend.model_files.checkpoint import from_model
from frontend.model_files.loaded_models import unwrapped
from frontend.model_files.model_changes import OF_TRAINING, refuse_changes

IDS = [5, 91, 17, 4, 250, 33]


def make_model(**fields):
    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 301,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, **fields,
        "max_position_embeddings": 256, "eos_token_id": 7, "pad_token_id": 0})).eval()


def random_loaded_model(seed):
    given = random_model(seed)
    config = transformers.CONFIG_MAPPING[given.family](**given.fields)
    return getattr(transformers, family_named(given.family).classes[0])(config)


def check(model):
    """What compile_decode_loop does with a loaded model before it compiles."""
    model = unwrapped(model)
    config = parse_config(model.config.to_dict(), None)
    refuse_changes(model, family_named(config.family).classes)
    checkpoint = from_model(model)
    check_tensors(checkpoint, config)
    return checkpoint


class Adapter(nn.Module):
    """What PEFT puts in the place of a linear: W + scale * B A."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer, self.disable_adapters = base_layer, False
        generator = torch.Generator().manual_seed(0)
        self.lora_A, self.lora_B = (nn.Parameter(torch.randn(*shape, generator=generator) / 9)
                                    for shape in ((2, base_layer.in_features),
                                                  (base_layer.out_features, 2)))

    def forward(self, x):
        return self.base_layer(x) + 0.5 * (x @ self.lora_A.T) @ self.lora_B.T


class Adapted(nn.Module):
    """What PEFT puts around a model."""

    def __init__(self, model, places):
        super().__init__()
        self.base_model, self.places = model, places
        for place in places:
            model.set_submodule(place, Adapter(model.get_submodule(place)))

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.base_model, name)

    def forward(self, *inputs):
        return self.base_model(*inputs)

    def merge_and_unload(self):
        for place in self.places:
            adapter = self.base_model.get_submodule(place)
            adapter.base_layer.weight.data += 0.5 * adapter.lora_B @ adapter.lora_A
            self.base_model.set_submodule(place, adapter.base_layer)
        return self.base_model


def hook(module, *arguments):
    return None


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


def same_logits(decoder, model):
    with torch.inference_mode():
        theirs = model(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(decoder.logits(IDS) - theirs).max() <= 1e-4 * np.abs(theirs).max()


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_of_the_whole_model_is_accepted(dtype):
    for theta in (100.0, 1e4, 1e6, 5e7):
        check(make_model(rope_theta=theta, head_dim=64).to(dtype))


def test_a_resized_vocabulary_is_accepted():
    model = make_model()
    model.resize_token_embeddings(320)
    same_logits(compile_decode_loop(model), model)


def test_other_classes_are_refused_by_name():
    config = make_model().config
    for model, name in ((transformers.LlamaForSequenceClassification(config), "Classification"),
                        (nn.DataParallel(nn.Linear(2, 2)), "Linear is neither a path")):
        with pytest.raises(UserError, match=name):
            compile_decode_loop(model)
