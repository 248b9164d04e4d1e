"""Tensors of a graph that travel together."""

from __future__ import annotations

from dataclasses import dataclass

from event_tensor.tensors import TensorSpec


@dataclass(frozen=True, slots=True)
class Routing:
    """Which rows go to which experts, as `select_experts` leaves it: one per sparse layer."""

    topk_ids: TensorSpec  # [tokens, top_k] int32
    topk_weights: TensorSpec  # [tokens, top_k] float32
    place: TensorSpec  # [tokens, top_k] int32: the slot of each choice
    counts: TensorSpec  # [num_experts] int32: rows of each expert
    tile_indptr: TensorSpec  # [num_experts + 1] int32: tiles of each expert
    tile_expert: TensorSpec  # [tiles] int32
    tile_rows: TensorSpec  # [tiles, tile_m] int32: the row in each slot, -1 where there is none


@dataclass(frozen=True, slots=True)
class RopeTables:
    """One way of rotating: [max_context, head_dim / 2] float32 each."""

    cos: TensorSpec
    sin: TensorSpec
