"""The weights of a layer's experts as packed tensors, however the checkpoint stores them.

transformers 5 holds two tensors per layer in memory, `mlp.experts.gate_up_proj` [experts,
2 * inner, hidden] and `mlp.experts.down_proj` [experts, hidden, inner]; files hold either those
or, as on the Hub, three linears per expert. Packed tensors are used in place, the others are
copied into one allocation per tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from persistent_runtime.launch.memory import allocate
from persistent_runtime.storage import converted

EXPERTS = ".mlp.experts."
# a packed tensor → the linears it holds for each expert, one above the other
PACKED_LINEARS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
Shape = tuple[int, ...]


class Stored(Protocol):
    """A checkpoint, as far as packing reads it."""

    def names(self) -> set[str]: ...

    def dtype(self, name: str) -> str: ...

    def read(self, name: str) -> NDArray[Any]: ...


def is_packed(name: str) -> bool:
    return EXPERTS in name and name.rpartition(".")[2] in PACKED_LINEARS


def single_experts(name: str, shape: Shape) -> dict[str, Shape]:
    """The linears, expert by expert, that make up a packed tensor.

    >>> list(single_experts("layers.0.mlp.experts.down_proj", (2, 8, 4)).items())[1]
    ('layers.0.mlp.experts.1.down_proj.weight', (8, 4))
    """
    prefix, _, packed = name.rpartition(".")
    linears = PACKED_LINEARS[packed]
    num_experts, rows, columns = shape
    return {f"{prefix}.{expert}.{linear}.weight": (rows // len(linears), columns)
            for expert in range(num_experts) for linear in linears}


def stored_tensors(checkpoint: Stored, required: Mapping[str, Shape]) -> dict[str, Shape]:
    """`required` as this checkpoint stores it: a packed tensor it lacks becomes its linears."""
    names, stored = checkpoint.names(), dict[str, Shape]()
    for name, shape in required.items():
        packed = name in names or not is_packed(name)
        stored |= {name: shape} if packed else single_experts(name, shape)
    return stored


def read_weight(checkpoint: Stored, name: str, shape: Shape, dtype: str) -> NDArray[Any]:
    """A tensor that the graph reads in the storage type of `dtype`: a view where the checkpoint
    has it as it is, else converted or packed."""
    parts = stored_tensors(checkpoint, {name: shape})
    if name in parts:
        return converted(checkpoint.read(name), checkpoint.dtype(name), dtype)
    packed = allocate(shape, dtype)
    places = packed.reshape(len(parts), -1, shape[-1])  # the linears lie one behind another
    for place, part in zip(places, parts, strict=True):
        place[...] = converted(checkpoint.read(part), checkpoint.dtype(part), dtype)
    return packed
