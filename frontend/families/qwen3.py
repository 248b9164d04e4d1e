"""Qwen3: norms on query and key heads in the place of Qwen2's biases."""

from frontend.config.windows import qwen_windows
from frontend.families.dense_block import dense_block
from frontend.families.family import COMMON_DEFAULTS, Family
from frontend.families.registry import register_family

QWEN3 = register_family(Family(
    "qwen3", ("Qwen3ForCausalLM", "Qwen3Model"), dense_block,
    {**COMMON_DEFAULTS, "num_key_value_heads": 32, "head_dim": 128,
     "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28},
    qk_norm=True, windows=qwen_windows,
    gguf_architecture="qwen3"))
