"""Random small models of every family: odd widths, one expert, one head, short windows."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

SCHEDULES = ("static", "dynamic", "hybrid", "auto")
WORKERS = (1, 2, 5)
PROMPT_TOKENS = (1, 3, 17, 40, 150)
ROPES = ({"rope_type": "linear", "factor": 2.5, "rope_theta": 5000.0},
         {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64})


@dataclass(frozen=True)
class RandomModel:
    """fields: of the config, beside those of `make_model.TINY`; prompts: token ids."""

    family: str
    fields: dict[str, Any]
    schedule: str
    workers: int
    prompts: list[list[int]]


def random_model(seed: int) -> RandomModel:
    rng = random.Random(seed)
    family = rng.choice(("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral"))
    kv_heads, group = rng.choice((1, 2, 3, 4)), rng.choice((1, 2, 3, 5, 8))
    head_dim = rng.choice((2, 6, 8, 16, 24, 32, 64, 80, 128))
    fields: dict[str, Any] = {
        "hidden_size": rng.choice((8, 24, 40, 72, 96, 130)), "head_dim": head_dim,
        "intermediate_size": rng.choice((4, 40, 136, 200, 333)),
        "num_hidden_layers": rng.choice((1, 2, 3)), "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * group, "vocab_size": rng.choice((50, 307, 2049)),
        "tie_word_embeddings": rng.random() < 0.5, "rms_norm_eps": rng.choice((1e-5, 1e-6))}
    if family == "llama":  # transformers wants whole heads in hidden_size
        fields |= {"hidden_size": kv_heads * group * rng.choice((2, 5, 8)),
                   "mlp_bias": rng.random() < 0.5}
    if family in ("llama", "qwen3"):
        fields["attention_bias"] = rng.random() < 0.5
    if family == "qwen2":
        fields["hidden_size"] = kv_heads * group * fields.pop("head_dim")
    if family in ("mistral", "mixtral"):
        fields["sliding_window"] = rng.choice((None, 3, 17))
    if family in ("qwen2", "qwen3"):
        fields |= {"use_sliding_window": rng.random() < 0.5, "sliding_window": rng.choice((3, 17)),
                   "max_window_layers": rng.choice((0, 1))}
    experts = rng.choice((1, 3, 5, 8, 33))
    if family == "qwen3_moe":
        fields |= {"num_experts": experts, "num_experts_per_tok": rng.randint(1, min(experts, 8)),
                   "moe_intermediate_size": rng.choice((4, 24, 40, 100)),
                   "norm_topk_prob": rng.random() < 0.5, "decoder_sparse_step": rng.choice((1, 2)),
                   "mlp_only_layers": rng.choice(([], [0]))}
    if family == "mixtral":
        fields |= {"num_local_experts": experts,
                   "num_experts_per_tok": rng.randint(1, min(experts, 8))}
    if rng.random() < 0.3:
        fields["rope_parameters"] = rng.choice(ROPES)
    prompts = [[rng.randrange(2, fields["vocab_size"]) for _ in range(tokens)]
               for tokens in rng.sample(PROMPT_TOKENS, 2)]
    return RandomModel(family, fields, rng.choice(SCHEDULES), rng.choice(WORKERS), prompts)


def unlikely_token(model: Any, prompt: list[int], output_ids: list[int]) -> int | None:
    """Where a token is not the likeliest, in float32 and up to what rounding may turn around."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *output_ids]])).logits[0, len(prompt) - 1:-1]
    chosen = logits[torch.arange(len(output_ids)), output_ids]
    behind = logits.max(dim=1).values - chosen > 1e-4 * logits.abs().max()
    return int(behind.nonzero()[0]) if behind.any() else None
