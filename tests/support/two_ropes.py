"""The model of examples/own_family.py, and the same in torch: a Llama of transformers with a GELU,
whose norm weights are one larger, whose embeddings are scaled, and which rotates by layer."""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from benchmarks.make_model import model_config, write_model

THETAS = 10.0, 5000.0  # far apart, so that the wrong one is noticed within few tokens
FIELDS = {"num_hidden_layers": 4, "hidden_act": "gelu_pytorch_tanh"}


def is_norm(name: str) -> bool:
    return name.endswith("norm.weight")


def write_two_ropes(directory: Path) -> Path:
    write_model(model_config("tiny-llama", **FIELDS), directory, dtype="float32", seed=5)
    weights = load_file(directory / "model.safetensors")
    save_file({name: tensor - 1 if is_norm(name) else tensor for name, tensor in weights.items()},
              directory / "model.safetensors", {"format": "pt"})
    path = directory / "config.json"
    fields = json.loads(path.read_text())
    del fields["rope_parameters"]
    path.write_text(json.dumps(fields | {
        "model_type": "two_ropes", "architectures": ["TwoRopesForCausalLM"],
        "rope_local_theta": THETAS[0], "rope_theta": THETAS[1]}))
    return directory


@torch.no_grad()
def reference_tokens(directory: Path, prompt: list[int], count: int) -> list[int]:
    config = model_config("tiny-llama", **FIELDS)
    model = transformers.LlamaForCausalLM(config).eval()
    weights = load_file(directory / "model.safetensors")
    model.load_state_dict({name: 1 + tensor if is_norm(name) else tensor
                           for name, tensor in weights.items()}, strict=True)
    model.model.embed_tokens.register_forward_hook(
        lambda module, inputs, output: output * config.hidden_size**0.5)
    for number, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(rotating_by(THETAS[number % 2]), with_kwargs=True)
    ids = [*prompt]
    for _ in range(count):  # the whole text anew for each token: no cache to be wrong about
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt):]


def rotating_by(theta: float):
    config = model_config("tiny-llama", rope_parameters={"rope_type": "default",
                                                         "rope_theta": theta})
    rope = LlamaRotaryEmbedding(config)

    def hook(layer, inputs, arguments):
        positions = torch.arange(inputs[0].shape[1])[None]
        return inputs, arguments | {"position_embeddings": rope(inputs[0], positions)}

    return hook
