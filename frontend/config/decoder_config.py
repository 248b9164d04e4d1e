"""config.json of a decoder model, checked field by field: what we cannot run is refused by name.

Defaults and precedence are those of transformers 5 (`configuration_<family>.py`,
`modeling_rope_utils.py`, `masking_utils.py`); its `rope_parameters` and the older `rope_theta` +
`rope_scaling` are both read.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from event_tensor.errors import UserError
from frontend.config.experts import ExpertConfig, dense_only, mixtral_experts, qwen3_moe_experts
from frontend.config.generation import Ends, ends_of, sampling_of, warn_of_unserved
from frontend.config.rope import RopeConfig, parse_rope
from frontend.config.sampling import Sampling
from frontend.config.windows import (
    Windows,
    full_attention,
    mistral_windows,
    one_window,
    qwen_windows,
    switched_window,
)
from frontend.model_files.json_fields import Fields, read_json, require_directory
from persistent_runtime.formats import DTYPES

SPECIAL_IDS = ("bos_token_id", "eos_token_id")


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    family: str  # a key of FAMILIES
    hidden_size: int
    intermediate_size: int  # of the MLP in layers without experts
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    qk_norm: bool  # an RMS norm over head_dim on every query and key head, before rope
    # Per layer: a query at position p sees the keys in (p - window, p]; None sees all up to p.
    sliding_window: Windows
    experts: ExpertConfig | None  # None where every layer is dense
    dtype: str | None  # one of DTYPES; None where config.json does not say
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    sampling: Sampling  # what generation_config.json asks for
    ends: Ends

    def is_sparse(self, layer: int) -> bool:
        """Whether the layer routes its tokens to experts."""
        return self.experts is not None and self.experts.is_sparse[layer]


def always(fields: Fields) -> bool:
    return True


def never(fields: Fields) -> bool:
    return False


def attention_bias(fields: Fields) -> bool:
    return fields.flag("attention_bias")


@dataclass(frozen=True, slots=True)
class Family:
    """What sets one model family apart; everything else is common to all."""

    class_prefix: str  # of the transformers classes: Llama -> LlamaForCausalLM
    defaults: Mapping[str, object]  # transformers' values for fields that may be absent
    qkv_bias: Callable[[Fields], bool] = attention_bias
    output_bias: Callable[[Fields], bool] = attention_bias
    mlp_bias: Callable[[Fields], bool] = never
    qk_norm: bool = False
    windows: Callable[[Fields, int], Windows] = full_attention
    experts: Callable[[Fields, int], ExpertConfig | None] = dense_only


COMMON_DEFAULTS = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10_000.0}
QWEN_DEFAULTS = COMMON_DEFAULTS | {
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
FAMILIES: Mapping[str, Family] = MappingProxyType({
    "llama": Family(
        "Llama",
        COMMON_DEFAULTS
        | {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
        mlp_bias=lambda fields: fields.flag("mlp_bias"),
    ),
    "qwen2": Family(
        "Qwen2", QWEN_DEFAULTS, qkv_bias=always, output_bias=never, windows=qwen_windows
    ),
    "qwen3": Family(
        "Qwen3", QWEN_DEFAULTS | {"head_dim": 128}, qk_norm=True, windows=qwen_windows
    ),
    # MistralAttention never has biases: transformers ignores attention_bias in a mistral config.
    "mistral": Family(
        "Mistral",
        COMMON_DEFAULTS
        | {
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "sliding_window": 4096,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        qkv_bias=never,
        output_bias=never,
        windows=mistral_windows,
    ),
    "qwen3_moe": Family(
        "Qwen3Moe",
        COMMON_DEFAULTS
        | {
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "sliding_window": 4096,
            "decoder_sparse_step": 1,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "num_experts_per_tok": 8,
        },
        qk_norm=True,
        windows=switched_window,
        experts=qwen3_moe_experts,
    ),
    # Neither biases nor layer_types mean anything to a mixtral model of transformers.
    "mixtral": Family(
        "Mixtral",
        COMMON_DEFAULTS
        | {
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000.0,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        qkv_bias=never,
        output_bias=never,
        windows=one_window,
        experts=mixtral_experts,
    ),
})


def read_config(directory: Path) -> DecoderConfig:
    """Reads config.json and, where there is one, generation_config.json of a model directory."""
    directory = Path(directory)
    require_directory(directory)
    fields = read_json(directory / "config.json")
    generation_path = directory / "generation_config.json"
    generation = read_json(generation_path) if os.path.lexists(generation_path) else None
    return parse_config(fields, generation, source=str(directory / "config.json"),
                        generation_source=str(generation_path))


def parse_config(
    fields: Mapping[str, object],
    generation: Mapping[str, object] | None,
    *,
    source: str = "config.json",
    generation_source: str = "generation_config",
) -> DecoderConfig:
    """The decoder that config.json (or `model.config.to_dict()`) describes.

    `generation` is generation_config.json (or `model.generation_config.to_dict()`): its
    eos_token_id and bos_token_id win, where it has them. Warns of what in it we cannot do.
    """
    warn_of_unserved(generation, generation_source)
    name = find_family(fields, source)
    family = FAMILIES[name]
    config = Fields(source, fields, family.defaults)
    refuse_unsupported(config)

    num_layers = config.integer("num_hidden_layers")
    hidden_size = config.integer("hidden_size")
    num_heads = config.integer("num_attention_heads")
    has_kv_heads = config.get("num_key_value_heads") is not None
    num_kv_heads = config.integer("num_key_value_heads") if has_kv_heads else num_heads
    if num_heads % num_kv_heads:
        raise UserError(
            f"{source}: num_attention_heads {num_heads} is not a multiple of num_key_value_heads "
            f"{num_kv_heads}; correct one of the two"
        )
    has_head_dim = config.get("head_dim") is not None
    head_dim = config.integer("head_dim") if has_head_dim else hidden_size // num_heads
    if head_dim == 0 or head_dim % 2:
        raise UserError(
            f"{source}: head_dim is {head_dim}; rotary embeddings need an even head_dim "
            "(where config.json has none it is hidden_size // num_attention_heads)"
        )
    # Null counts: a loaded model may have been told to run on past its end token.
    given = {key: value for key, value in (generation or {}).items() if key in SPECIAL_IDS}
    special_ids = Fields(source, {**fields, **given}, family.defaults)
    return DecoderConfig(
        family=name,
        hidden_size=hidden_size,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config.integer("vocab_size"),
        rms_norm_eps=config.number("rms_norm_eps"),
        rope=parse_rope(config),
        max_position_embeddings=config.integer("max_position_embeddings"),
        tie_word_embeddings=config.flag("tie_word_embeddings"),
        qkv_bias=family.qkv_bias(config),
        output_bias=family.output_bias(config),
        mlp_bias=family.mlp_bias(config),
        qk_norm=family.qk_norm,
        sliding_window=family.windows(config, num_layers),
        experts=family.experts(config, num_layers),
        dtype=parse_dtype(config),
        eos_token_ids=special_ids.token_ids("eos_token_id"),
        bos_token_id=next(iter(special_ids.token_ids("bos_token_id")), None),
        sampling=sampling_of(generation, generation_source),
        ends=ends_of(generation, generation_source),
    )


def find_family(values: Mapping[str, object], source: str) -> str:
    """The key of FAMILIES that `model_type` and `architectures` name."""
    supported = "supported are " + ", ".join(
        f"{name} ({family.class_prefix}ForCausalLM)" for name, family in FAMILIES.items()
    )
    known = {
        family.class_prefix + suffix: name
        for name, family in FAMILIES.items()
        for suffix in ("ForCausalLM", "Model")  # LlamaModel: the same decoder without its lm_head
    }
    model_type = values.get("model_type")
    architectures = values.get("architectures") or []
    if not isinstance(architectures, (list, tuple)):
        raise UserError(
            f"{source}: architectures is {architectures!r}; it must be a list of class names"
        )
    for architecture in architectures:
        if not isinstance(architecture, str) or architecture not in known:
            raise UserError(
                f"{source}: the architecture {architecture!r} is not supported; {supported}"
            )
    named = {known[architecture] for architecture in architectures}
    if model_type is None and not named:
        raise UserError(f"{source}: the field model_type is missing; {supported}")
    if model_type is not None and (not isinstance(model_type, str) or model_type not in FAMILIES):
        raise UserError(f"{source}: model_type {model_type!r} is not supported; {supported}")
    named |= {model_type} if isinstance(model_type, str) else set()
    if len(named) > 1:
        raise UserError(
            f"{source}: model_type {model_type!r} contradicts architectures {list(architectures)}; "
            "correct one of the two"
        )
    return named.pop()


def refuse_unsupported(config: Fields) -> None:
    for field in ("quantization_config", "compression_config"):
        quantization = config.get(field)
        if quantization is not None:
            named = quantization if isinstance(quantization, Mapping) else {}
            raise UserError(
                f"{config.source}: the weights are quantised by {named.get('quant_method')!r} "
                f"({field}.quant_method), which is not supported; use the unquantised model in "
                f"{', '.join(DTYPES)}"
            )
    if config.get("per_layer_config"):
        raise UserError(
            f"{config.source}: per_layer_config is not supported; all layers must have one shape"
        )
    if config.get("hidden_act") not in ("silu", "swish"):  # two names of one function
        raise config.error("hidden_act", "the only supported activation is silu")


def parse_dtype(config: Fields) -> str | None:
    field = "dtype" if config.get("dtype") is not None else "torch_dtype"
    dtype = str(config.get(field)).removeprefix("torch.")
    if dtype in ("None", "auto"):
        return None
    if dtype not in DTYPES:
        raise config.error(field, f"supported are {', '.join(DTYPES)}")
    return dtype
