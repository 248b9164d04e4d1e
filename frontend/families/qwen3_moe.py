"""Qwen3 with experts in some layers or all."""

from frontend.config.experts import qwen3_moe_experts
from frontend.config.windows import switched_window
from frontend.families.family import COMMON_DEFAULTS, Family
from frontend.families.moe_block import moe_block
from frontend.families.registry import register_family

QWEN3_MOE = register_family(Family(
    "qwen3_moe", ("Qwen3MoeForCausalLM", "Qwen3MoeModel"), moe_block,
    {**COMMON_DEFAULTS, "num_key_value_heads": 4, "max_position_embeddings": 32768,
     "sliding_window": 4096, "decoder_sparse_step": 1, "moe_intermediate_size": 768,
     "num_experts": 128, "num_experts_per_tok": 8},
    qk_norm=True, windows=switched_window, experts=qwen3_moe_experts))
