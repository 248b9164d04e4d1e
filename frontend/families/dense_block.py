"""The layer of a Llama-like decoder: attention, then an MLP, each after its norm and added to x.

What its config leaves out (biases, head norms, windows) is left out of the graph. Projections that
read one x are fused with its norm, as every fast decoder fuses them.
"""

from __future__ import annotations

from event_tensor.tensors import TensorSpec
from frontend.graph.operators import Operators


def dense_block(ops: Operators, layer: int, x: TensorSpec) -> TensorSpec:
    """x: [tokens, hidden], in place"""
    return add_mlp(ops, layer, add_attention(ops, layer, x))


def add_attention(ops: Operators, layer: int, x: TensorSpec) -> TensorSpec:
    """x += attention of rms_norm(x), in place: [tokens, hidden]"""
    config, tiles, p = ops.config, ops.tiles, f"model.layers.{layer}"
    hidden, head_dim = config.hidden_size, config.head_dim
    q_width, kv_width = config.num_heads * head_dim, config.num_kv_heads * head_dim
    norm = ops.weight(f"{p}.input_layernorm.weight", hidden)
    q, k, v = (
        ops.norm_linear(
            f"{p}.self_attn.{part}_proj", x, norm,
            ops.weight(f"{p}.self_attn.{part}_proj.weight", width, hidden),
            bias_of(ops, config.qkv_bias, f"{p}.self_attn.{part}_proj", width), tile_n)
        for part, width, tile_n in (("q", q_width, tiles.q), ("k", kv_width, tiles.kv),
                                    ("v", kv_width, tiles.kv)))
    q_norm, k_norm = (
        ops.weight(f"{p}.self_attn.{part}_norm.weight", head_dim) if config.qk_norm else None
        for part in "qk")
    attended = ops.attention(p, q, k, v, q_norm, k_norm, config.layers[layer])
    return ops.linear_residual(
        f"{p}.self_attn.o_proj", attended,
        ops.weight(f"{p}.self_attn.o_proj.weight", hidden, q_width),
        bias_of(ops, config.output_bias, f"{p}.self_attn.o_proj", hidden), x, tiles.output)


def add_mlp(ops: Operators, layer: int, x: TensorSpec) -> TensorSpec:
    """x += mlp(rms_norm(x)), in place: [tokens, hidden]"""
    config, p = ops.config, f"model.layers.{layer}"
    hidden, inner = config.hidden_size, config.layers[layer].intermediate_size
    gated = ops.norm_gate_up(
        f"{p}.mlp.gate_up", x, ops.weight(f"{p}.post_attention_layernorm.weight", hidden),
        ops.weight(f"{p}.mlp.gate_proj.weight", inner, hidden),
        ops.weight(f"{p}.mlp.up_proj.weight", inner, hidden),
        bias_of(ops, config.mlp_bias, f"{p}.mlp.gate_proj", inner),
        bias_of(ops, config.mlp_bias, f"{p}.mlp.up_proj", inner))
    return ops.linear_residual(
        f"{p}.mlp.down_proj", gated, ops.weight(f"{p}.mlp.down_proj.weight", hidden, inner),
        bias_of(ops, config.mlp_bias, f"{p}.mlp.down_proj", hidden), x, ops.tiles.down)


def bias_of(ops: Operators, present: bool, linear: str, width: int) -> TensorSpec | None:
    return ops.weight(f"{linear}.bias", width) if present else None
