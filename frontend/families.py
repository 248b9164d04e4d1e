"""Decoders as functions over named operators, fused as every fast decoder fuses them.

config.py says how the families differ; a family with another block gets a function here.
"""

from __future__ import annotations

from frontend.operators import Operators


def dense_decoder(ops: Operators) -> None:
    """One step of a Llama-like decoder; what its config leaves out (biases, head norms, windows)
    is left out of the graph."""
    config, tiles = ops.config, ops.tiles
    hidden, inner, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_width, kv_width = config.num_heads * head_dim, config.num_kv_heads * head_dim

    def bias(present: bool, name: str, width: int):  # noqa: ANN202
        return ops.weight(f"{name}.bias", width) if present else None

    embedding = ops.weight("model.embed_tokens.weight", config.vocab_size, hidden)
    x = ops.embed_tokens(embedding)  # [tokens, hidden]
    for layer in range(config.num_layers):
        p = f"model.layers.{layer}"
        norm = ops.weight(f"{p}.input_layernorm.weight", hidden)
        q, k, v = (
            ops.norm_linear(
                f"{p}.self_attn.{part}_proj", x, norm,
                ops.weight(f"{p}.self_attn.{part}_proj.weight", width, hidden),
                bias(config.qkv_bias, f"{p}.self_attn.{part}_proj", width), tile_n)
            for part, width, tile_n in (("q", q_width, tiles.q), ("k", kv_width, tiles.kv),
                                        ("v", kv_width, tiles.kv)))
        k_cache, v_cache = ops.kv_cache(f"{p}.k_cache"), ops.kv_cache(f"{p}.v_cache")
        q_norm, k_norm = (
            ops.weight(f"{p}.self_attn.{part}_norm.weight", head_dim) if config.qk_norm else None
            for part in "qk")
        q = ops.rope_append(f"{p}.rope_append", q, k, v, q_norm, k_norm, k_cache, v_cache)
        attended = ops.attention(f"{p}.attention", q, k_cache, v_cache,
                                 config.sliding_window[layer])
        x = ops.linear_residual(
            f"{p}.self_attn.o_proj", attended,
            ops.weight(f"{p}.self_attn.o_proj.weight", hidden, q_width),
            bias(config.output_bias, f"{p}.self_attn.o_proj", hidden), x, tiles.output)
        gated = ops.norm_gate_up_silu(
            f"{p}.mlp.gate_up", x, ops.weight(f"{p}.post_attention_layernorm.weight", hidden),
            ops.weight(f"{p}.mlp.gate_proj.weight", inner, hidden),
            ops.weight(f"{p}.mlp.up_proj.weight", inner, hidden),
            bias(config.mlp_bias, f"{p}.mlp.gate_proj", inner),
            bias(config.mlp_bias, f"{p}.mlp.up_proj", inner))
        x = ops.linear_residual(
            f"{p}.mlp.down_proj", gated, ops.weight(f"{p}.mlp.down_proj.weight", hidden, inner),
            bias(config.mlp_bias, f"{p}.mlp.down_proj", hidden), x, tiles.down)
    head = embedding if config.tie_word_embeddings else ops.weight(
        "lm_head.weight", config.vocab_size, hidden)
    ops.norm_lm_head(x, ops.weight("model.norm.weight", hidden), head)
