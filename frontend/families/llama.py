"""Llama 1 to 3, and the many decoders that are written in its terms."""

from frontend.families.dense_block import dense_block
from frontend.families.family import COMMON_DEFAULTS, Family
from frontend.families.registry import register_family

LLAMA = register_family(Family(
    "llama", ("LlamaForCausalLM", "LlamaModel"), dense_block,
    {**COMMON_DEFAULTS, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    mlp_bias=lambda fields: fields.flag("mlp_bias"),
    gguf_architecture="llama"))
