"""Mistral: a window on all layers, or on those that layer_types names."""

from frontend.config.windows import mistral_windows
from frontend.families.dense_block import dense_block
from frontend.families.family import COMMON_DEFAULTS, Family, never
from frontend.families.registry import register_family

# MistralAttention never has biases: transformers ignores attention_bias in a mistral config.
MISTRAL = register_family(Family(
    "mistral", ("MistralForCausalLM", "MistralModel"), dense_block,
    {**COMMON_DEFAULTS, "num_key_value_heads": 8, "max_position_embeddings": 131072,
     "sliding_window": 4096, "bos_token_id": 1, "eos_token_id": 2},
    qkv_bias=never, output_bias=never, windows=mistral_windows,
    gguf_architecture="llama"))
