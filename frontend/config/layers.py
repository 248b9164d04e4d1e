"""What may differ from layer to layer of one decoder."""

from __future__ import annotations

from dataclasses import dataclass

from frontend.config.experts import ExpertConfig
from frontend.config.rope import RopeConfig


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """One layer of a decoder.

    window: a query at position p sees the keys in (p - window, p]; None where it sees all up to p.
    rope: how queries and keys are rotated. intermediate_size: inner width of the dense MLP.
    experts: those the layer routes its tokens to, in the place of the dense MLP; None for the MLP.
    """

    window: int | None
    rope: RopeConfig
    intermediate_size: int
    experts: ExpertConfig | None = None
