"""A step of any decoder: embedding, the layers that its family's block adds, norm and LM head."""

from __future__ import annotations

from frontend.config.decoder_config import DecoderConfig
from frontend.families.registry import family_named
from frontend.graph.control import Limits
from frontend.graph.operators import Operators
from frontend.graph.tiles import choose_tiles
from scheduling.target import generic_cpu

EMBEDDING = "model.embed_tokens.weight"


def build_step(ops: Operators) -> None:
    """Adds the calls of one step to the graph of `ops`."""
    config = ops.config
    block = family_named(config.family).block
    embedding = ops.weight(EMBEDDING, config.vocab_size, config.hidden_size)
    x = ops.embed_tokens(embedding)  # [tokens, hidden]
    for layer in range(config.num_layers):
        x = block(ops, layer, x)
    norm = ops.weight("model.norm.weight", config.hidden_size)
    head = embedding if config.tie_word_embeddings else ops.weight(
        "lm_head.weight", config.vocab_size, config.hidden_size)
    ops.norm_lm_head(x, norm, head)


def required_tensors(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """`Operators.weight_shapes` of a decoder, for those who need no more of its graph."""
    dtype, limits = "float32", Limits(1, 2, 3, 1)  # neither changes a shape
    ops = Operators(config, choose_tiles(config, generic_cpu(1), dtype), limits, dtype)
    build_step(ops)
    return ops.weight_shapes
