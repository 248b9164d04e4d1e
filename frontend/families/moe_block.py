"""The layer of a mixture-of-experts decoder: attention, then the layer's experts, or a dense MLP
where it has none."""

from __future__ import annotations

from event_tensor.tensors import TensorSpec
from frontend.config.experts import ExpertConfig
from frontend.families.dense_block import add_attention, add_mlp
from frontend.graph.operators import Operators


def moe_block(ops: Operators, layer: int, x: TensorSpec) -> TensorSpec:
    """x: [tokens, hidden], in place"""
    x = add_attention(ops, layer, x)
    experts = ops.config.layers[layer].experts
    return add_experts(ops, layer, x, experts) if experts else add_mlp(ops, layer, x)


def add_experts(ops: Operators, layer: int, x: TensorSpec, experts: ExpertConfig) -> TensorSpec:
    """x += the experts of each row of rms_norm(x), in place: [tokens, hidden]"""
    hidden, p = ops.config.hidden_size, f"model.layers.{layer}"
    count, inner = experts.num_experts, experts.intermediate_size
    return ops.moe_block(
        f"{p}.mlp", x, ops.weight(f"{p}.post_attention_layernorm.weight", hidden),
        ops.weight(f"{p}.mlp.gate.weight", count, hidden),
        ops.weight(f"{p}.mlp.experts.gate_up_proj", count, 2 * inner, hidden),
        ops.weight(f"{p}.mlp.experts.down_proj", count, hidden, inner), experts)
