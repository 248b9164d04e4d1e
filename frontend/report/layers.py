"""The layer that a call or an event tensor belongs to, read off its name."""

from __future__ import annotations

import re
from typing import Any


def layer_of(call_name: str) -> int | None:
    """`model.layers.3.mlp.down_proj` → 3; None for a call outside the layers."""
    found = re.search(r"\blayers\.(\d+)\.", call_name)
    return int(found[1]) if found else None


def layer_record(call_name: str) -> dict[str, Any]:
    """What a trace says of a call beside its name."""
    return {"layer": layer_of(call_name)}


def any_layer(name: str) -> str:
    """`model.layers.3.mlp` → `model.layers.*.mlp`"""
    return re.sub(r"\blayers\.\d+\.", "layers.*.", name)
