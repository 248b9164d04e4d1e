"""Mixtral: Mistral with experts in every layer, whose files spell them in a way of their own."""

from frontend.config.experts import mixtral_experts
from frontend.config.windows import one_window
from frontend.families.family import COMMON_DEFAULTS, Family, never
from frontend.families.moe_block import moe_block
from frontend.families.registry import register_family

EXPERTS = ".block_sparse_moe.experts."
LINEARS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def mixtral_name(name: str) -> str:
    """The name of a file's tensor as the other families and transformers 5 spell it.

    >>> mixtral_name("model.layers.0.block_sparse_moe.experts.3.w1.weight")
    'model.layers.0.mlp.experts.3.gate_proj.weight'
    """
    layer, found, rest = name.partition(EXPERTS)
    if found:
        expert, _, linear = rest.partition(".")
        linear, dot, last = linear.partition(".")
        return f"{layer}.mlp.experts.{expert}.{LINEARS.get(linear, linear)}{dot}{last}"
    return name.replace(".block_sparse_moe.", ".mlp.")


# Neither biases nor layer_types mean anything to a mixtral model of transformers.
MIXTRAL = register_family(Family(
    "mixtral", ("MixtralForCausalLM", "MixtralModel"), moe_block,
    {**COMMON_DEFAULTS, "rms_norm_eps": 1e-5, "rope_theta": 1_000_000.0,
     "num_key_value_heads": 8, "max_position_embeddings": 131072, "num_experts": 8,
     "num_experts_per_tok": 2, "bos_token_id": 1, "eos_token_id": 2},
    qkv_bias=never, output_bias=never, windows=one_window, experts=mixtral_experts,
    tensor_name=mixtral_name))
