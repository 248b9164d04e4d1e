"""Formats of blocks as numba sees them: pointers to whole blocks, and loaders that unpack one.

A pointer to blocks counts blocks, as a pointer to float32 counts elements. All that reads a block
is its format's loader, which emits vector IR; `load_block` finds it by the pointer's type.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.datamodel.models import PrimitiveModel
from numba.core.imputils import lower_constant
from numba.extending import intrinsic, register_model, typeof_impl

from event_tensor.errors import UserError
from persistent_runtime.cpu.vectors.emit import LANES
from persistent_runtime.cpu.vectors.intrinsics import F32, I8, I64
from persistent_runtime.formats import Format

# (builder, address of a block as i8*) → its elements as vectors of LANES float32
Loader = Callable[[ir.IRBuilder, ir.Value], Sequence[ir.Value]]

_loaders: dict[str, Loader] = {}


def cpu_loader(stored: Format) -> Callable[[Loader], Loader]:
    """Registers the decorated function as what unpacks a format's blocks on the CPU.

    It emits IR: `loader(builder, block)` returns block_elements / LANES vectors of LANES float32.
    Its helpers belong into its own file, in which the cache of compiled bodies notices changes.
    """
    if stored.is_elementwise or stored.block_elements % LANES:
        raise UserError(f"blocks of {stored.name} have {stored.block_elements} elements; this CPU "
                        f"loads blocks of a multiple of {LANES}")

    def register(loader: Loader) -> Loader:
        _loaders[stored.name] = loader
        return loader

    return register


def loader_of(stored: Format) -> Loader:
    """Raises UserError where a format has none."""
    try:
        return _loaders[stored.name]
    except KeyError:
        raise UserError(
            f"format {stored.name!r} has no CPU loader; decorate one with @cpu_loader from "
            f"persistent_runtime.cpu.vectors.block_types") from None


def loader_source(stored: Format) -> Path:
    """The file that defines a format's loader."""
    return Path(inspect.getfile(loader_of(stored)))


class Block:
    """What stands for a block in compiled code, as a numpy zero does for an element."""

    def __init__(self, stored: Format) -> None:
        self.stored = stored


class BlockType(types.Type):
    def __init__(self, stored: Format) -> None:
        self.stored = stored
        super().__init__(f"Block({stored.name})")

    @property
    def bitwidth(self) -> int:
        return 8 * self.stored.block_bytes


@typeof_impl.register(Block)
def _type_of_block(block: Block, context: Any) -> BlockType:
    return BlockType(block.stored)


@register_model(BlockType)
class BlockModel(PrimitiveModel):
    """A block as a value is never looked at; in memory it is its bytes."""

    def __init__(self, manager: Any, block: BlockType) -> None:
        super().__init__(manager, block, I8)

    def get_data_type(self) -> ir.Type:
        return ir.ArrayType(I8, self._fe_type.stored.block_bytes)


@lower_constant(BlockType)
def _constant_block(context: Any, builder: ir.IRBuilder, kind: BlockType, value: Block) -> Any:
    return ir.Constant(I8, 0)


def elements_of(storage: types.Type | None) -> int:
    """Elements in what a pointer of this type counts."""
    return storage.stored.block_elements if isinstance(storage, BlockType) else 1


def load_block(builder: ir.IRBuilder, pointer: ir.Value, storage: BlockType) -> list[ir.Value]:
    """The elements of the block at a pointer, as vectors of LANES float32."""
    stored = storage.stored
    vectors = list(loader_of(stored)(builder, builder.bitcast(pointer, I8.as_pointer())))
    kind = ir.VectorType(F32, LANES)
    if len(vectors) * LANES != stored.block_elements or any(v.type != kind for v in vectors):
        raise UserError(f"the CPU loader of {stored.name} returns {len(vectors)} vectors of "
                        f"{vectors[0].type if vectors else 'nothing'}; it must return "
                        f"{stored.block_elements // LANES} of {kind}")
    return vectors


@intrinsic
def items(typing_context, pointer, elements):
    """How many of what the pointer counts hold so many elements: all of them, or whole blocks."""
    size = elements_of(getattr(pointer, "dtype", None))  # None for a pointer that is None

    def codegen(context, builder, signature, args):
        return args[1] if size == 1 else builder.sdiv(args[1], ir.Constant(I64, size))

    return types.int64(pointer, types.int64), codegen
