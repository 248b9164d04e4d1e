"""What sets one model family apart; everything else is common to all.

A hook reads `Fields`: config.json with the family's defaults for fields that may be absent. Hooks
that differ by layer also take the number of layers and return one entry for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from event_tensor.tensors import TensorSpec
from frontend.config.activation import only_silu
from frontend.config.decoder_config import DecoderConfig
from frontend.config.experts import Experts, dense_only
from frontend.config.rope import Ropes, one_rope
from frontend.config.windows import Windows, full_attention
from frontend.graph.operators import Operators
from frontend.model_files.checkpoint import as_it_is
from frontend.model_files.json_fields import Fields

# Adds one layer to the graph: its number and x in, what the next layer reads out; both are
# [tokens, hidden_size] and mostly the same tensor, which the layer updates in place.
Block = Callable[[Operators, int, TensorSpec], TensorSpec]

COMMON_DEFAULTS: Mapping[str, object] = {
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10_000.0}


def always(fields: Fields) -> bool:
    return True


def never(fields: Fields) -> bool:
    return False


def attention_bias(fields: Fields) -> bool:
    return fields.flag("attention_bias")


def unchanged(fields: Fields, config: DecoderConfig) -> DecoderConfig:
    return config


@dataclass(frozen=True, slots=True)
class Family:
    """model_type: as config.json names it. classes: those of transformers, with the LM head and
    without it. defaults: transformers' values for fields that may be absent.

    refine: what else config.json says, as changes to the config that has been read.
    tensor_name: a tensor's name in a checkpoint → its name in the graph.
    gguf_architecture: of llama.cpp, where it runs the same decoder.
    """

    model_type: str
    classes: tuple[str, str]
    block: Block
    defaults: Mapping[str, object] = field(default_factory=lambda: COMMON_DEFAULTS)
    qkv_bias: Callable[[Fields], bool] = attention_bias
    output_bias: Callable[[Fields], bool] = attention_bias
    mlp_bias: Callable[[Fields], bool] = never
    qk_norm: bool = False
    activation: Callable[[Fields], str] = only_silu
    windows: Callable[[Fields, int], Windows] = full_attention
    ropes: Callable[[Fields, int], Ropes] = one_rope
    experts: Callable[[Fields, int], Experts] = dense_only
    refine: Callable[[Fields, DecoderConfig], DecoderConfig] = unchanged
    tensor_name: Callable[[str], str] = as_it_is
    gguf_architecture: str | None = None
