"""config.json of a decoder model, checked field by field: what we cannot run is refused by name.

Defaults and precedence are those of transformers 5 (`configuration_<family>.py`,
`modeling_rope_utils.py`, `masking_utils.py`); its `rope_parameters` and the older `rope_theta` +
`rope_scaling` are both read.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from event_tensor.errors import UserError
from frontend.config.decoder_config import DecoderConfig
from frontend.config.generation import ends_of, sampling_of, warn_of_unserved
from frontend.config.layers import LayerConfig
from frontend.families.family import Family
from frontend.families.registry import family_of
from frontend.model_files.json_fields import Fields, read_json, require_directory
from persistent_runtime.formats import DTYPES

SPECIAL_IDS = ("bos_token_id", "eos_token_id")


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
    family = family_of(fields, source)
    config = Fields(source, fields, family.defaults)
    refuse_unsupported(config)

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
    return family.refine(config, DecoderConfig(
        family=family.model_type,
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config.integer("vocab_size"),
        rms_norm_eps=config.number("rms_norm_eps"),
        layers=parse_layers(config, family),
        max_position_embeddings=config.integer("max_position_embeddings"),
        tie_word_embeddings=config.flag("tie_word_embeddings"),
        qkv_bias=family.qkv_bias(config),
        output_bias=family.output_bias(config),
        mlp_bias=family.mlp_bias(config),
        qk_norm=family.qk_norm,
        dtype=parse_dtype(config),
        eos_token_ids=special_ids.token_ids("eos_token_id"),
        bos_token_id=next(iter(special_ids.token_ids("bos_token_id")), None),
        sampling=sampling_of(generation, generation_source),
        ends=ends_of(generation, generation_source),
        attention_scale=float(head_dim) ** -0.5,
        activation=family.activation(config),
    ))


def parse_layers(config: Fields, family: Family) -> tuple[LayerConfig, ...]:
    count, width = config.integer("num_hidden_layers"), config.integer("intermediate_size")
    by_layer = zip(family.windows(config, count), family.ropes(config, count),
                   family.experts(config, count), strict=True)
    return tuple(LayerConfig(window, rope, width, experts) for window, rope, experts in by_layer)


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


def parse_dtype(config: Fields) -> str | None:
    field = "dtype" if config.get("dtype") is not None else "torch_dtype"
    dtype = str(config.get(field)).removeprefix("torch.")
    if dtype in ("None", "auto"):
        return None
    if dtype not in DTYPES:
        raise config.error(field, f"supported are {', '.join(DTYPES)}")
    return dtype
