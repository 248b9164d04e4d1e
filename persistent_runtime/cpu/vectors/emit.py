"""Vector IR: what loads, stores, multiplies or fetches a vector, and the processor's facts.

Vectors are as wide as the machine's registers; LLVM splits or widens them elsewhere, so nothing
here requires an instruction set, but for what is marked as for machines where DOTS_BFLOAT16.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target

from persistent_runtime.cpu.vectors.intrinsics import I32, I64, emit_widen

CPU_FEATURES: str = cpu_target.target_context.codegen().magic_tuple()[2]
_enabled = set(CPU_FEATURES.split(","))
LANES = 16 if "+avx512f" in _enabled else 8 if "+avx" in _enabled else 4  # float32 per register
MANY_REGISTERS = "+avx512f" in _enabled or "+neon" in _enabled  # 32 vector registers, else 16
# whether one instruction multiplies pairs of bfloat16 and adds them to float32 sums
DOTS_BFLOAT16 = "+avx512bf16" in _enabled
# x86 before 2012 converts float16 in a library that compiled code cannot reach
CONVERTS_FLOAT16 = "+f16c" in _enabled or "+sse2" not in _enabled

# Independent accumulators that hide the latency of two fused multiply-adds per cycle.
ACCUMULATORS_IN_FLIGHT = 8

# Hardware prefetchers stop at the end of a page; this far ahead, memory's latency is hidden.
FETCH_AHEAD_BYTES, CACHE_LINE_BYTES = 4096, 64

MULTIPLY_ADD = ("contract",)


class BFloat16Type(ir.Type):
    """LLVM's bfloat, which llvmlite does not have."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat16Type)

    def __hash__(self) -> int:
        return hash(BFloat16Type)


def constant(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def stored_load(builder: ir.IRBuilder, pointer: ir.Value, index: ir.Value, storage: types.Type,
                mask: ir.Value | None = None, lanes: int = LANES) -> ir.Value:
    """`lanes` elements from `pointer[index]`, as they are stored; where `mask` is off, zero."""
    start = builder.gep(pointer, [index])
    kind = ir.VectorType(start.type.pointee, lanes)
    address = builder.bitcast(start, kind.as_pointer())
    alignment = storage.bitwidth // 8  # that of an element
    if mask is None:
        return builder.load(address, align=alignment)
    load = masked(builder, "load", kind, [address.type, I32, mask.type, kind], kind)
    return builder.call(load, [address, ir.Constant(I32, alignment), mask,
                               ir.Constant(kind, None)])


def vector_load(builder: ir.IRBuilder, pointer: ir.Value, index: ir.Value,
                storage: types.Type, mask: ir.Value | None = None) -> ir.Value:
    """LANES stored elements from `pointer[index]`, as float32; where `mask` is off, zero."""
    return emit_widen(builder, stored_load(builder, pointer, index, storage, mask), storage)


def vector_store(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, index: ir.Value,
                 storage: types.Type, mask: ir.Value | None) -> None:
    """Stores LANES elements of the type `storage`, or those where `mask` is on."""
    address = builder.bitcast(builder.gep(pointer, [index]), value.type.as_pointer())
    alignment = storage.bitwidth // 8
    if mask is None:
        builder.store(value, address, align=alignment)
        return
    store = masked(builder, "store", value.type,
                   [value.type, address.type, I32, mask.type], ir.VoidType())
    builder.call(store, [value, address, ir.Constant(I32, alignment), mask])


def masked(builder: ir.IRBuilder, action: str, kind: ir.VectorType, operands: list[ir.Type],
           result: ir.Type) -> ir.Function:
    name = f"llvm.masked.{action}.v{kind.count}{kind.element.intrinsic_name}.p0"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, operands), name)


def first_lanes(builder: ir.IRBuilder, count: ir.Value, lanes: int = LANES) -> ir.Value:
    """A mask of `lanes` that is on in the first `count`."""
    numbers = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, splat(builder, count, lanes))


def splat(builder: ir.IRBuilder, value: ir.Value, lanes: int = LANES) -> ir.Value:
    kind = ir.VectorType(value.type, lanes)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I64, 0))
    mask = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), mask)


def row_sums(builder: ir.IRBuilder, vectors: list[ir.Value]) -> ir.Value:
    """The sums of 1, 2, 4, … vectors as the lanes of one: neighbouring lanes are added, two
    vectors at a time as long as there are two, which costs far less than one sum after another."""
    def add_neighbours(a: ir.Value, b: ir.Value, lanes: int) -> ir.Value:
        even, odd = (builder.shuffle_vector(a, b, ir.Constant(
            ir.VectorType(I32, lanes), list(range(first, 2 * lanes, 2))))
            for first in (0, 1))
        return builder.fadd(even, odd)

    count = len(vectors)
    while len(vectors) > 1:
        vectors = [add_neighbours(a, b, LANES)
                   for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    total = vectors[0]
    for lanes in (LANES >> k for k in range(1, LANES.bit_length())):
        if lanes >= count:
            total = add_neighbours(total, ir.Constant(total.type, ir.Undefined), lanes)
    return total


def multiply_add_pairs(builder: ir.IRBuilder, accumulator: ir.Value, a: ir.Value,
                       b: ir.Value) -> None:
    """Adds to each float32 the products of its two pairs of bfloat16."""
    old = builder.load(accumulator)
    pairs = ir.VectorType(BFloat16Type(), 2 * LANES)
    dot = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(old.type, [old.type, pairs, pairs]),
        f"llvm.x86.avx512bf16.dpbf16ps.{32 * LANES}")
    operands = [old, builder.bitcast(a, pairs), builder.bitcast(b, pairs)]
    builder.store(builder.call(dot, operands), accumulator)


def multiply_add(builder: ir.IRBuilder, accumulator: ir.Value, a: ir.Value,
                 b: ir.Value) -> None:
    product = builder.fmul(a, b, flags=MULTIPLY_ADD)
    old = builder.load(accumulator)
    builder.store(builder.fadd(old, product, flags=MULTIPLY_ADD), accumulator)


def zeroed(builder: ir.IRBuilder, kind: ir.Type) -> ir.Value:
    accumulator = cgutils.alloca_once(builder, kind)
    builder.store(ir.Constant(kind, None), accumulator)
    return accumulator


def fetch_line(builder: ir.IRBuilder, address: ir.Value) -> None:
    byte_pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte_pointer, I32, I32, I32])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    # to read (0), used once (0), data (1)
    operands = [ir.Constant(I32, flag) for flag in (0, 0, 1)]
    builder.call(prefetch, [builder.bitcast(address, byte_pointer), *operands])


def fetch(builder: ir.IRBuilder, ahead: ir.Value, k: ir.Value, count: int,
          storage: types.Type) -> None:
    """Prefetches the lines of `count` elements or blocks from `ahead[k]`. It harms nothing that
    they may lie beyond an end: a test of that would cost up to half of the speed of what it stands
    in."""
    first = builder.bitcast(builder.gep(ahead, [k]), ir.IntType(8).as_pointer())
    for line in range(0, count * storage.bitwidth // 8, CACHE_LINE_BYTES):
        fetch_line(builder, builder.gep(first, [constant(line)]))


def total(builder: ir.IRBuilder, accumulators: list[ir.Value]) -> ir.Value:
    parts = [builder.load(accumulator) for accumulator in accumulators]
    while len(parts) > 1:
        parts = [builder.fadd(*parts[k:k + 2]) if k + 1 < len(parts) else parts[k]
                 for k in range(0, len(parts), 2)]
    return parts[0]
