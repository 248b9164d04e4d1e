"""The models that ship with the package: whole, small, and routing as they should."""

import pytest
import torch
from checked import check_tensors

from frontend.families.read_config import read_config
from frontend.model_files.checkpoint import open_checkpoint
from frontend.model_files.resolve import DEMO_MODELS
from frontend.model_files.tokenizer import load_tokenizer

LARGEST_MB = {"demo": 10, "demo-moe": 3.1}  # of all files


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_demo_models_are_whole_and_small(name):
    directory = DEMO_MODELS[name]
    config = read_config(directory)
    with open_checkpoint(directory) as checkpoint:
        check_tensors(checkpoint, config)
    assert (config.experts is not None) == (name == "demo-moe")
    tokenizer = load_tokenizer(directory)
    assert tokenizer is not None
    assert tokenizer.decode(tokenizer.encode("kernel: core")) == "kernel: core"
    assert sum(path.stat().st_size for path in directory.iterdir()) <= LARGEST_MB[name] * 1e6


@torch.no_grad()
def test_the_experts_of_demo_moe_share_the_load():
    """A prompt of its own text meets every expert of every sparse layer, none too often."""
    import transformers

    directory = DEMO_MODELS["demo-moe"]
    config, tokenizer = read_config(directory), load_tokenizer(directory)
    text = ("hacker: A person who enjoys exploring the details of programmable systems and how to "
            "stretch their capabilities, as opposed to most users, who prefer to learn only the "
            "minimum necessary. kernel: The part of an operating system that schedules programs "
            "and manages the hardware; in Unix it is the one program that is always running.")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    logits = model(torch.tensor([tokenizer.encode(text)]), output_router_logits=True).router_logits
    assert len(logits) == sum(layer.experts is not None for layer in config.layers) == 3
    for layer in logits:  # [tokens, experts]
        chosen = layer.topk(config.experts.top_k).indices.flatten()
        shares = torch.bincount(chosen, minlength=config.experts.num_experts) / len(chosen)
        assert shares.max() < 0.5
        assert (shares > 0).sum() >= config.experts.num_experts - 1
