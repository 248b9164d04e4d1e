"""Qwen2 and Qwen2.5: biases on q, k and v always, windows from a layer on."""

from frontend.config.windows import qwen_windows
from frontend.families.dense_block import dense_block
from frontend.families.family import COMMON_DEFAULTS, Family, always, never
from frontend.families.registry import register_family

QWEN2 = register_family(Family(
    "qwen2", ("Qwen2ForCausalLM", "Qwen2Model"), dense_block,
    {**COMMON_DEFAULTS, "num_key_value_heads": 32, "max_position_embeddings": 32768,
     "sliding_window": 4096, "max_window_layers": 28},
    qkv_bias=always, output_bias=never, windows=qwen_windows,
    gguf_architecture="qwen2"))
