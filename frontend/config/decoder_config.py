"""A decoder as its config.json describes it, every default filled in."""

from __future__ import annotations

from dataclasses import dataclass

from frontend.config.experts import ExpertConfig
from frontend.config.generation import Ends
from frontend.config.layers import LayerConfig
from frontend.config.rope import RopeConfig
from frontend.config.sampling import Sampling


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    family: str  # its model_type
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    layers: tuple[LayerConfig, ...]
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool  # an RMS norm over head_dim on every query and key head, before rope
    dtype: str | None  # one of DTYPES; None where config.json does not say
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    sampling: Sampling  # what generation_config.json asks for
    ends: Ends
    attention_scale: float  # of the scores before their softmax
    activation: str = "silu"  # of the MLP's gate; a key of functions/activations.py's ACTIVATIONS
    norm_offset: float = 0.0  # added to each weight of every norm
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0  # of what attention and MLP add to the residual

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def intermediate_size(self) -> int:
        """Inner width of the widest dense MLP."""
        return max(layer.intermediate_size for layer in self.layers)

    @property
    def experts(self) -> ExpertConfig | None:
        """Those of the first layer that has any; None where every layer is dense."""
        return next((layer.experts for layer in self.layers if layer.experts), None)

    @property
    def ropes(self) -> tuple[RopeConfig, ...]:
        """Each way of rotating once, in the order of the layers that first need it."""
        return tuple(dict.fromkeys(layer.rope for layer in self.layers))
