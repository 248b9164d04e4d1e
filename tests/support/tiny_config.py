"""A small config, and names in configs that several tests write."""

from typing import Any

TINY: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 99,
}
FULL, SLIDING = "full_attention", "sliding_attention"
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def tiny(family: str = "llama", **fields: object) -> dict[str, object]:
    return {"model_type": family, **TINY, **fields}
