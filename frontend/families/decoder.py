"""Decoders as functions over named operators, fused as every fast decoder fuses them.

config.py says how the families differ; a family with another block gets a function here.
"""

from __future__ import annotations

from event_tensor.tensors import TensorSpec
from frontend.graph.operators import Operators


def build_step(ops: Operators) -> None:
    """A step of a Llama-like decoder; what its config leaves out (biases, head norms, windows,
    experts) is left out of the graph."""
    config = ops.config
    hidden = config.hidden_size
    embedding = ops.weight("model.embed_tokens.weight", config.vocab_size, hidden)
    x = ops.embed_tokens(embedding)  # [tokens, hidden]
    for layer in range(config.num_layers):
        x = attention_block(ops, layer, x)
        x = (sparse_block if config.layers[layer].experts else dense_block)(ops, layer, x)
    head = embedding if config.tie_word_embeddings else ops.weight(
        "lm_head.weight", config.vocab_size, hidden)
    ops.norm_lm_head(x, ops.weight("model.norm.weight", hidden), head)


def attention_block(ops: Operators, layer: int, x: TensorSpec) -> TensorSpec:
    """x += attention of rms_norm(x), in place: [tokens, hidden]"""
    config, tiles, p = ops.config, ops.tiles, f"model.layers.{layer}"
    hidden, head_dim = config.hidden_size, config.head_dim
    q_width, kv_width = config.num_heads * head_dim, config.num_kv_heads * head_dim
    norm = ops.weight(f"{p}.input_layernorm.weight", hidden)
    q, k, v = (
        ops.norm_linear(
            f"{p}.self_attn.{part}_proj", x, norm,
            ops.weight(f"{p}.self_attn.{part}_proj.weight", width, hidden),
            _bias(ops, config.qkv_bias, f"{p}.self_attn.{part}_proj", width), tile_n)
        for part, width, tile_n in (("q", q_width, tiles.q), ("k", kv_width, tiles.kv),
                                    ("v", kv_width, tiles.kv)))
    q_norm, k_norm = (
        ops.weight(f"{p}.self_attn.{part}_norm.weight", head_dim) if config.qk_norm else None
        for part in "qk")
    attended = ops.attention(p, q, k, v, q_norm, k_norm, config.layers[layer])
    return ops.linear_residual(
        f"{p}.self_attn.o_proj", attended,
        ops.weight(f"{p}.self_attn.o_proj.weight", hidden, q_width),
        _bias(ops, config.output_bias, f"{p}.self_attn.o_proj", hidden), x, tiles.output)


def dense_block(ops: Operators, layer: int, x: TensorSpec) -> TensorSpec:
    """x += mlp(rms_norm(x)), in place: [tokens, hidden]"""
    config, p = ops.config, f"model.layers.{layer}"
    hidden, inner = config.hidden_size, config.layers[layer].intermediate_size
    gated = ops.norm_gate_up_silu(
        f"{p}.mlp.gate_up", x, ops.weight(f"{p}.post_attention_layernorm.weight", hidden),
        ops.weight(f"{p}.mlp.gate_proj.weight", inner, hidden),
        ops.weight(f"{p}.mlp.up_proj.weight", inner, hidden),
        _bias(ops, config.mlp_bias, f"{p}.mlp.gate_proj", inner),
        _bias(ops, config.mlp_bias, f"{p}.mlp.up_proj", inner))
    return ops.linear_residual(
        f"{p}.mlp.down_proj", gated, ops.weight(f"{p}.mlp.down_proj.weight", hidden, inner),
        _bias(ops, config.mlp_bias, f"{p}.mlp.down_proj", hidden), x, ops.tiles.down)


def sparse_block(ops: Operators, layer: int, x: TensorSpec) -> TensorSpec:
    """x += the experts of each row of rms_norm(x), in place: [tokens, hidden]"""
    config, p = ops.config, f"model.layers.{layer}"
    experts, hidden = config.layers[layer].experts, config.hidden_size
    assert experts is not None
    count, inner = experts.num_experts, experts.intermediate_size
    return ops.moe_block(
        f"{p}.mlp", x, ops.weight(f"{p}.post_attention_layernorm.weight", hidden),
        ops.weight(f"{p}.mlp.gate.weight", count, hidden),
        ops.weight(f"{p}.mlp.experts.gate_up_proj", count, 2 * inner, hidden),
        ops.weight(f"{p}.mlp.experts.down_proj", count, hidden, inner), experts)


def _bias(ops: Operators, present: bool, name: str, width: int) -> TensorSpec | None:
    return ops.weight(f"{name}.bias", width) if present else None
