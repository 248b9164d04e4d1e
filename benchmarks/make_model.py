"""Writes a model directory of a published shape with random weights: nothing to download.

    python benchmarks/make_model.py qwen3-0.6b /tmp/qwen3-0.6b
    python benchmarks/make_model.py qwen3-30b-a3b /tmp/qwen3-30b-a3b-4 --layers 4

Speed depends on shapes and dtype, not on what the weights say.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.shapes import PUBLISHED  # noqa: E402
from frontend.families.registry import families  # noqa: E402

# Widths that no tile size divides, and weights large enough that no two logits come close.
TINY: dict[str, Any] = {
    "hidden_size": 72, "intermediate_size": 136, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 307, "max_position_embeddings": 512,
    "initializer_range": 0.15, "bos_token_id": 0, "eos_token_id": 1}
TINY_OF_FAMILY: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 40},
    "mixtral": {"num_local_experts": 5, "num_experts_per_tok": 2}}
SHAPES = (*PUBLISHED, *(f"tiny-{family}" for family in families()))


def model_config(shape: str, **overrides: Any) -> Any:
    """The transformers config of a shape of SHAPES."""
    family = shape.removeprefix("tiny-")
    fields = PUBLISHED.get(shape) or TINY | TINY_OF_FAMILY.get(family, {}) | {"model_type": family}
    return transformers.AutoConfig.for_model(**fields | overrides)


def write_model(config: Any, directory: Path, *, dtype: str = "bfloat16", seed: int = 0) -> Path:
    """config.json and random weights, drawn in `dtype` itself; norm weights lie around 1."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model = model.to_empty(device="cpu")
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        spread = 0.1 if is_norm else config.initializer_range
        torch.nn.init.normal_(parameter, 1.0 if is_norm else 0.0, spread)
    model.tie_weights()
    model.save_pretrained(directory)
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, help="by default all that the shape has")
    options = parser.parse_args()
    layers = {"num_hidden_layers": options.layers} if options.layers else {}
    write_model(model_config(options.shape, **layers), options.directory, dtype=options.dtype,
                seed=options.seed)


if __name__ == "__main__":
    main()
