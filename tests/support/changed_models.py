"""Loaded models that a test changes: adapters as PEFT puts them in, hooks, and what a decoder does
with the result before it compiles."""

import numpy as np
import torch
import transformers
from checked import check_tensors
from torch import nn

from frontend.families.read_config import parse_config
from frontend.families.registry import family_named
from frontend.model_files.checkpoint import from_model
from frontend.model_files.loaded_models import unwrapped
from frontend.model_files.model_changes import refuse_changes

IDS = [5, 91, 17, 4, 250, 33]


def make_model(**fields):
    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 301,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, **fields,
        "max_position_embeddings": 256, "eos_token_id": 7, "pad_token_id": 0})).eval()


def check(model):
    """What compile_decode_loop does with a loaded model before it compiles."""
    model = unwrapped(model)
    config = parse_config(model.config.to_dict(), None)
    refuse_changes(model, family_named(config.family).classes)
    checkpoint = from_model(model)
    check_tensors(checkpoint, config)
    return checkpoint


def same_logits(decoder, model):
    with torch.inference_mode():
        theirs = model(torch.tensor([IDS])).logits[0].numpy()
    assert np.abs(decoder.logits(IDS) - theirs).max() <= 1e-4 * np.abs(theirs).max()


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
