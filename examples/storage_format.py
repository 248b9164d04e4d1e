"""A storage format of one's own: 8-bit integers in blocks of 32, each block with a scale.

The format is an entry in the table of formats with a numpy reference, and a loader that emits
vector code for the CPU. Nothing else knows of it: the body of the linear is the library's own.
"""

from __future__ import annotations

import argparse

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from event_tensor.graph import Graph
from event_tensor.symbols import Symbol
from event_tensor.tensors import TensorSpec
from persistent_runtime.cpu.vectors.block_types import cpu_loader
from persistent_runtime.cpu.vectors.emit import LANES, splat
from persistent_runtime.formats import Format, register_format, row_bytes
from persistent_runtime.functions.dense import linear_residual
from persistent_runtime.megakernel import Megakernel

BLOCK = np.dtype([("scale", np.float32), ("codes", np.int8, 32)])  # 36 bytes
CODES_AT = 4  # bytes from the start of a block
OUT_FEATURES, IN_FEATURES, TILE = 96, 256, 32
FLOAT, BYTE, INT32 = ir.FloatType(), ir.IntType(8), ir.IntType(32)


def dequantize(stored: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """[..., bytes of a row] → [..., elements]: the reference for all loaders."""
    blocks = np.ascontiguousarray(stored).view(BLOCK)
    return (blocks["scale"][..., None] * blocks["codes"]).reshape(*stored.shape[:-1], -1)


def quantize(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Each block's largest element becomes 127 or -127."""
    parts = values.reshape(*values.shape[:-1], -1, 32)
    blocks = np.zeros(parts.shape[:-1], BLOCK)
    blocks["scale"] = np.abs(parts).max(axis=-1) / 127
    blocks["codes"] = np.rint(parts / np.maximum(blocks["scale"], 1e-30)[..., None])
    return blocks.view(np.uint8).reshape(*values.shape[:-1], -1)


INT8_BLOCKS = register_format(Format("int8_blocks", block_elements=32, block_bytes=BLOCK.itemsize,
                                     storage=np.dtype(np.uint8), dequantize=dequantize))


@cpu_loader(INT8_BLOCKS)
def load_int8_block(builder: ir.IRBuilder, block: ir.Value) -> list[ir.Value]:
    """The 32 elements of the block at an address, as vectors of LANES float32."""
    scale = splat(builder, builder.load(builder.bitcast(block, FLOAT.as_pointer()), align=4))
    vectors = []
    for first in range(0, 32, LANES):
        address = builder.gep(block, [ir.Constant(INT32, CODES_AT + first)])
        kind = ir.VectorType(BYTE, LANES).as_pointer()
        codes = builder.load(builder.bitcast(address, kind), align=1)
        vectors.append(builder.fmul(scale, builder.sitofp(codes, ir.VectorType(FLOAT, LANES))))
    return vectors


def linear_graph() -> Graph:
    """out += x @ weight.T with a quantised weight."""
    tokens = Symbol("tokens")
    weight = TensorSpec("weight", (OUT_FEATURES, IN_FEATURES), INT8_BLOCKS.name, "weight")
    graph = Graph("quantised_linear")
    graph.call_device(
        linear_residual,
        args=[TensorSpec("x", (tokens, IN_FEATURES)), weight, None,
              TensorSpec("out", (tokens, OUT_FEATURES))],
        parameters={"tile_m": TILE, "tile_n": TILE, "in_features": IN_FEATURES,
                    "row_bytes": row_bytes(weight), "rows": TILE})
    return graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 7, 40])
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    random = np.random.default_rng(0)
    values = random.standard_normal((OUT_FEATURES, IN_FEATURES), np.float32)
    weight = quantize(values)
    loss = float(np.abs(dequantize(weight) - values).max())
    print(f"{values.nbytes} bytes become {weight.nbytes}; largest change {loss:.1e}")
    kernel = Megakernel(linear_graph(), workers=options.workers)
    for tokens in options.tokens:
        x = random.standard_normal((tokens, IN_FEATURES), np.float32)
        out = np.zeros((tokens, OUT_FEATURES), np.float32)
        kernel.run({"tokens": tokens}, {"x": x, "weight": weight, "out": out})
        error = float(np.abs(out - x.astype(np.float64) @ dequantize(weight).T).max())
        print(f"{tokens} tokens: largest error {error:.1e} against the reference, "
              f"compilations {kernel.compilations}")


if __name__ == "__main__":
    main()
