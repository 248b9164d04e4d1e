"""The experts that config.json describes: how many, how many a token takes, in which layers.

Field names and defaults are those of transformers 5 (`configuration_qwen3_moe.py`,
`configuration_mixtral.py`); older files spell num_local_experts as num_experts and the reverse.
"""

from __future__ import annotations

from dataclasses import dataclass

from event_tensor.errors import UserError
from frontend.model_files.json_fields import Fields

COUNT_SPELLINGS = ("num_experts", "num_local_experts")


@dataclass(frozen=True, slots=True)
class ExpertConfig:
    num_experts: int
    top_k: int  # experts that each token takes: num_experts_per_tok
    intermediate_size: int  # of one expert
    norm_topk: bool  # whether the weights of a token's experts are made to sum to 1


Experts = tuple[ExpertConfig | None, ...]  # per layer; None where it has one dense MLP


def dense_only(fields: Fields, num_layers: int) -> Experts:
    return (None,) * num_layers


def qwen3_moe_experts(fields: Fields, num_layers: int) -> Experts:
    """Experts in every decoder_sparse_step-th layer that mlp_only_layers does not name."""
    step = fields.integer("decoder_sparse_step")
    dense = _layers(fields, "mlp_only_layers", num_layers)
    is_sparse = tuple((layer + 1) % step == 0 and layer not in dense
                      for layer in range(num_layers))
    return _experts(fields, fields.integer("moe_intermediate_size"),
                    fields.flag("norm_topk_prob"), is_sparse)


def mixtral_experts(fields: Fields, num_layers: int) -> Experts:
    return _experts(fields, fields.integer("intermediate_size"), True, (True,) * num_layers)


def _experts(fields: Fields, intermediate_size: int, norm_topk: bool,
             is_sparse: tuple[bool, ...]) -> Experts:
    num_experts, top_k = _num_experts(fields), fields.integer("num_experts_per_tok")
    if top_k > num_experts:
        raise UserError(
            f"{fields.source}: num_experts_per_tok {top_k} exceeds the {num_experts} experts; "
            "correct one of the two")
    experts = ExpertConfig(num_experts, top_k, intermediate_size, norm_topk)
    return tuple(experts if sparse else None for sparse in is_sparse)


def _num_experts(fields: Fields) -> int:
    given = {name: fields.integer(name) for name in COUNT_SPELLINGS if name in fields.values}
    if len(set(given.values())) > 1:
        both = " and ".join(f"{name} {count}" for name, count in given.items())
        raise UserError(f"{fields.source}: {both} are two spellings of one number; correct one of "
                        "the two")
    return next(iter(given.values()), None) or fields.integer("num_experts")


def _layers(fields: Fields, name: str, num_layers: int) -> frozenset[int]:
    """A list of layer indices, or null for none."""
    values = fields.get(name)
    values = [] if values is None else values
    if not isinstance(values, (list, tuple)) or any(
            not isinstance(v, int) or isinstance(v, bool) or not 0 <= v < num_layers
            for v in values):
        raise fields.error(name, f"it must list layers from 0 to {num_layers - 1}")
    return frozenset(values)
