"""A format of blocks for tests: 32 elements of four bits in 18 bytes, with a float16 scale, as many
published checkpoints have them. Element k < 16 is the lower half of byte k, k + 16 the upper."""

import numpy as np

from persistent_runtime.formats import Format, register_format

ELEMENTS = 32
BLOCK = np.dtype([("scale", np.float16), ("pairs", np.uint8, 16)])
SCALE_BYTES, LEAST = BLOCK["scale"].itemsize, 8  # code 8 stands for 0


def dequantize(stored):
    blocks = np.ascontiguousarray(stored).view(BLOCK)
    pairs = blocks["pairs"]
    codes = np.concatenate([pairs & 15, pairs >> 4], -1).astype(np.float32) - LEAST
    return (blocks["scale"].astype(np.float32)[..., None] * codes).reshape(*stored.shape[:-1], -1)


def random_rows(rng, *shape):
    """Rows of `shape` elements as they are stored: [..., bytes of a row]."""
    blocks = np.zeros((*shape[:-1], shape[-1] // ELEMENTS), BLOCK)
    blocks["scale"] = rng.uniform(0.05, 0.2, blocks.shape)
    blocks["pairs"] = rng.integers(0, 256, blocks["pairs"].shape)
    return blocks.view(np.uint8).reshape(*shape[:-1], -1)


FOUR_BITS = register_format(Format("four_bits", ELEMENTS, BLOCK.itemsize, np.dtype(np.uint8),
                                   dequantize))


def register_cpu_loader():
    from llvmlite import ir

    from persistent_runtime.cpu.vectors.block_types import cpu_loader
    from persistent_runtime.cpu.vectors.emit import LANES, splat

    half, single, byte, int32 = ir.HalfType(), ir.FloatType(), ir.IntType(8), ir.IntType(32)
    codes_kind, kind = ir.VectorType(byte, LANES), ir.VectorType(single, LANES)

    def all_lanes(value, vector):
        return ir.Constant(vector, [value] * LANES)

    @cpu_loader(FOUR_BITS)
    def load_four_bits(builder, block):
        scale = builder.load(builder.bitcast(block, half.as_pointer()), align=1)
        scale = splat(builder, builder.fpext(scale, single))
        vectors = []
        for first in range(0, ELEMENTS, LANES):
            address = builder.gep(block, [ir.Constant(int32, SCALE_BYTES + first % 16)])
            pairs = builder.load(builder.bitcast(address, codes_kind.as_pointer()), align=1)
            codes = (builder.and_(pairs, all_lanes(15, codes_kind)) if first < 16 else
                     builder.lshr(pairs, all_lanes(4, codes_kind)))
            codes = builder.fsub(builder.uitofp(codes, kind), all_lanes(float(LEAST), kind))
            vectors.append(builder.fmul(scale, codes))
        return vectors


def register_gpu_loader():
    from four_bits_gpu import load_four_bits

    from persistent_runtime.gpu.compile.stored import gpu_loader

    gpu_loader(FOUR_BITS)(load_four_bits)


register_cpu_loader()
