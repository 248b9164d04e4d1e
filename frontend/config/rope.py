"""What a config says about rotary position embeddings, in its old fields or its new ones."""

from collections.abc import Mapping
from dataclasses import dataclass

from event_tensor.errors import UserError
from frontend.model_files.json_fields import Fields

ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    rope_type: str  # one of ROPE_TYPES
    theta: float
    factor: float = 1.0  # linear and llama3
    low_freq_factor: float | None = None  # this and the next two: llama3 only
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None


Ropes = tuple[RopeConfig, ...]  # per layer


def one_rope(fields: Fields, num_layers: int) -> Ropes:
    return (parse_rope(fields),) * num_layers


def parse_rope(config: Fields) -> RopeConfig:
    # As transformers does it: rope_scaling, where it says anything, replaces rope_parameters.
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    values = config.get(name) or {}
    if not isinstance(values, Mapping):
        raise config.error(name, "it must be an object")
    nested = [key for key, value in values.items() if isinstance(value, Mapping)]
    if nested:
        raise UserError(
            f"{config.source}: {name} differs by layer type ({', '.join(nested)}), which is not "
            "supported; rope parameters must be the same for every layer"
        )
    given = {f"{name}.{key}": value for key, value in values.items() if value is not None}
    rope = Fields(config.source, given)

    rope_type = rope.get(f"{name}.rope_type") or rope.get(f"{name}.type") or "default"
    if not isinstance(rope_type, str) or rope_type not in ROPE_TYPES:
        raise UserError(
            f"{config.source}: the rope type {rope_type!r} is not supported; supported are "
            f"{', '.join(ROPE_TYPES)}"
        )
    partial = "partial_rotary_factor"
    for place, field in ((rope, f"{name}.{partial}"), (config, partial)):
        if place.get(field) is not None and place.get(field) != 1:
            raise place.error(field, "rotating only part of a head is not supported, it must be 1")

    has_theta = f"{name}.rope_theta" in given
    theta = rope.number(f"{name}.rope_theta") if has_theta else config.number("rope_theta")
    if rope_type == "default":
        return RopeConfig("default", theta)
    factor = rope.number(f"{name}.factor")
    if rope_type == "linear":
        return RopeConfig("linear", theta, factor)

    low = rope.number(f"{name}.low_freq_factor")
    high = rope.number(f"{name}.high_freq_factor")
    if high <= low:
        raise rope.error(f"{name}.high_freq_factor", f"it must exceed low_freq_factor {low}")
    original = f"{name}.original_max_position_embeddings"
    if config.get("original_max_position_embeddings") is not None:
        original_context = config.integer("original_max_position_embeddings")
    elif original in given:
        original_context = rope.integer(original)
    else:
        original_context = config.integer("max_position_embeddings")
    return RopeConfig("llama3", theta, factor, low, high, original_context)
