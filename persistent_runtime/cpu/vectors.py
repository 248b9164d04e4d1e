"""Two register-blocked inner loops as explicit vector IR: products along rows, and sums of rows.

LLVM's own vectoriser handles simple loops well, but not a block of many accumulators. Vectors are
as wide as the machine's registers; LLVM splits or widens them elsewhere, so nothing here requires
an instruction set, but for what is marked as for machines where DOTS_BFLOAT16.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from persistent_runtime.cpu.intrinsics import (
    F32,
    I16,
    I32,
    I64,
    emit_widen,
)

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


def _constant(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def _stored_load(builder: ir.IRBuilder, pointer: ir.Value, index: ir.Value, storage: types.Type,
                 mask: ir.Value | None = None, lanes: int = LANES) -> ir.Value:
    """`lanes` elements from `pointer[index]`, as they are stored; where `mask` is off, zero."""
    start = builder.gep(pointer, [index])
    kind = ir.VectorType(start.type.pointee, lanes)
    address = builder.bitcast(start, kind.as_pointer())
    alignment = storage.bitwidth // 8  # that of an element
    if mask is None:
        return builder.load(address, align=alignment)
    load = _masked(builder, "load", kind, [address.type, I32, mask.type, kind], kind)
    return builder.call(load, [address, ir.Constant(I32, alignment), mask,
                               ir.Constant(kind, None)])


def _vector_load(builder: ir.IRBuilder, pointer: ir.Value, index: ir.Value,
                 storage: types.Type, mask: ir.Value | None = None) -> ir.Value:
    """LANES stored elements from `pointer[index]`, as float32; where `mask` is off, zero."""
    return emit_widen(builder, _stored_load(builder, pointer, index, storage, mask), storage)


def _vector_store(builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value, index: ir.Value,
                  storage: types.Type, mask: ir.Value | None) -> None:
    """Stores LANES elements of the type `storage`, or those where `mask` is on."""
    address = builder.bitcast(builder.gep(pointer, [index]), value.type.as_pointer())
    alignment = storage.bitwidth // 8
    if mask is None:
        builder.store(value, address, align=alignment)
        return
    store = _masked(builder, "store", value.type,
                    [value.type, address.type, I32, mask.type], ir.VoidType())
    builder.call(store, [value, address, ir.Constant(I32, alignment), mask])


def _masked(builder: ir.IRBuilder, action: str, kind: ir.VectorType, operands: list[ir.Type],
            result: ir.Type) -> ir.Function:
    name = f"llvm.masked.{action}.v{kind.count}{kind.element.intrinsic_name}.p0"
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, operands), name)


def _first_lanes(builder: ir.IRBuilder, count: ir.Value, lanes: int = LANES) -> ir.Value:
    """A mask of `lanes` that is on in the first `count`."""
    numbers = ir.Constant(ir.VectorType(I64, lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, _splat(builder, count, lanes))


def _splat(builder: ir.IRBuilder, value: ir.Value, lanes: int = LANES) -> ir.Value:
    kind = ir.VectorType(value.type, lanes)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I64, 0))
    mask = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), mask)


def _row_sums(builder: ir.IRBuilder, vectors: list[ir.Value]) -> ir.Value:
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


def _multiply_add_pairs(builder: ir.IRBuilder, accumulator: ir.Value, a: ir.Value,
                        b: ir.Value) -> None:
    """Adds to each float32 the products of its two pairs of bfloat16."""
    old = builder.load(accumulator)
    pairs = ir.VectorType(BFloat16Type(), 2 * LANES)
    dot = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(old.type, [old.type, pairs, pairs]),
        f"llvm.x86.avx512bf16.dpbf16ps.{32 * LANES}")
    operands = [old, builder.bitcast(a, pairs), builder.bitcast(b, pairs)]
    builder.store(builder.call(dot, operands), accumulator)


def _multiply_add(builder: ir.IRBuilder, accumulator: ir.Value, a: ir.Value,
                  b: ir.Value) -> None:
    product = builder.fmul(a, b, flags=MULTIPLY_ADD)
    old = builder.load(accumulator)
    builder.store(builder.fadd(old, product, flags=MULTIPLY_ADD), accumulator)


def _zeroed(builder: ir.IRBuilder, kind: ir.Type) -> ir.Value:
    accumulator = cgutils.alloca_once(builder, kind)
    builder.store(ir.Constant(kind, None), accumulator)
    return accumulator


@intrinsic
def multiplicand(typing_context, like):
    """A zero of the type in which `dot_block` has x fastest beside weights stored as `like`."""
    kind = types.uint16 if DOTS_BFLOAT16 and like == types.uint16 else types.float32

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return context.get_constant_null(signature.return_type)

    return kind(like), codegen


def _most_rows(x: types.Type) -> int:
    """Rows of x in the largest block. Products in pairs take half the time of others, and loads
    that can hide behind them are fewer: they need a larger block to run at full speed."""
    return 6 if x.dtype == types.uint16 else 4


@intrinsic
def most_rows(typing_context, x):
    """How many rows of x `dot_block` multiplies if it is not told."""
    rows = _most_rows(x)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return _constant(rows)

    return types.int64(x), codegen


@intrinsic
def round_block(typing_context, x, length, out):
    """out = x for `length` float32, rounded to nearest even where out is bfloat16; out may begin
    where x does. For machines where DOTS_BFLOAT16; subnormal numbers become zero there."""
    signature = types.void(x, types.int64, out)
    storage = out.dtype

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> None:
        x, length, out = args

        def convert(k: ir.Value, mask: ir.Value | None = None) -> None:
            value = _vector_load(builder, x, k, types.float32, mask)
            if storage == types.uint16:
                value = builder.fptrunc(value, ir.VectorType(BFloat16Type(), LANES))
                value = builder.bitcast(value, ir.VectorType(I16, LANES))
            _vector_store(builder, value, out, k, storage, mask)

        whole = builder.and_(length, _constant(-LANES))
        with cgutils.for_range_slice(builder, _constant(0), whole, _constant(LANES),
                                     I64) as (k, _):
            convert(k)
        with builder.if_then(builder.icmp_signed("<", whole, length), likely=False):
            convert(whole, _first_lanes(builder, builder.sub(length, whole)))

    return signature, codegen


@intrinsic(prefer_literal=True)
def dot_block(typing_context, weight, x, x_stride, length, out, out_stride, keep, ahead,
              weight_rows, x_rows):
    """out[m, n] = keep * out[m, n] + Σ_k weight[n, k] * x[m, k] for `length` columns k.

    x is float32, or bfloat16 beside bfloat16 weights where DOTS_BFLOAT16. `weight_rows` (a power
    of two) and `x_rows` are literals; weight rows follow one another. keep is 0 or 1, and with 0
    the old contents are not looked at. While a weight is read, its counterpart in `ahead` is
    fetched into the cache, unless `ahead` is None.
    """
    storage, x_storage = weight.dtype, x.dtype
    in_pairs = x_storage == types.uint16
    lanes, add = (2 * LANES, _multiply_add_pairs) if in_pairs else (LANES, _multiply_add)
    n_rows = weight_rows.literal_value
    m_rows = _most_rows(x) if x_rows == types.none else x_rows.literal_value
    fetches = ahead != types.none
    signature = types.void(weight, x, types.int64, types.int64, out, types.int64, types.int64,
                           ahead, weight_rows, x_rows)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> None:
        weight, x, x_stride, length, out, out_stride, keep, ahead, _, _ = args
        vector = ir.VectorType(F32, LANES)
        unroll = max(1, ACCUMULATORS_IN_FLIGHT // (n_rows * m_rows))
        accumulators = [[[_zeroed(builder, vector) for _ in range(unroll)]
                         for _ in range(n_rows)] for _ in range(m_rows)]
        weights = [builder.gep(weight, [builder.mul(length, _constant(n))])
                   for n in range(n_rows)]
        xs = [builder.gep(x, [builder.mul(x_stride, _constant(m))]) for m in range(m_rows)]

        def load(pointer: ir.Value, k: ir.Value, storage: types.Type, mask: ir.Value | None
                 ) -> ir.Value:
            if in_pairs:
                return _stored_load(builder, pointer, k, storage, mask, lanes)
            return _vector_load(builder, pointer, k, storage, mask)

        def products(k: ir.Value, part: int, mask: ir.Value | None = None) -> None:
            rows = [load(w, k, storage, mask) for w in weights]
            for m in range(m_rows):
                column = load(xs[m], k, x_storage, mask)
                for n in range(n_rows):
                    add(builder, accumulators[m][n][part], rows[n], column)

        def rounded_down(vectors: int) -> ir.Value:
            return builder.and_(length, _constant(-vectors * lanes))

        with cgutils.for_range_slice(builder, _constant(0), rounded_down(unroll),
                                     _constant(unroll * lanes), I64) as (k, _):
            if fetches:
                _fetch(builder, ahead, builder.mul(k, _constant(n_rows)),
                       n_rows * unroll * lanes, storage)
            for part in range(unroll):
                products(builder.add(k, _constant(part * lanes)), part)
        whole = rounded_down(1)
        if unroll > 1:
            with cgutils.for_range_slice(builder, rounded_down(unroll), whole, _constant(lanes),
                                         I64) as (k, _):
                products(k, 0)
        with builder.if_then(builder.icmp_signed("<", whole, length), likely=False):
            products(whole, 0, _first_lanes(builder, builder.sub(length, whole), lanes))

        keeps = builder.icmp_signed("!=", keep, _constant(0))
        sums_kind = ir.VectorType(F32, n_rows)
        for m in range(m_rows):
            sums = _row_sums(builder, [_total(builder, parts) for parts in accumulators[m]])
            target = builder.bitcast(builder.gep(out, [builder.mul(out_stride, _constant(m))]),
                                     sums_kind.as_pointer())
            old = builder.select(keeps, builder.load(target, align=4), ir.Constant(sums_kind, None))
            builder.store(builder.fadd(old, sums), target, align=4)

    return signature, codegen


def _fetch_line(builder: ir.IRBuilder, address: ir.Value) -> None:
    byte_pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte_pointer, I32, I32, I32])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    # to read (0), used once (0), data (1)
    operands = [ir.Constant(I32, flag) for flag in (0, 0, 1)]
    builder.call(prefetch, [builder.bitcast(address, byte_pointer), *operands])


def _fetch(builder: ir.IRBuilder, ahead: ir.Value, k: ir.Value, count: int,
           storage: types.Type) -> None:
    """Prefetches the lines of `count` elements from `ahead[k]`. It harms nothing that they may lie
    beyond an end: a test of that would cost up to half of the speed of what it stands in."""
    element_bytes = storage.bitwidth // 8
    for line in range(0, count * element_bytes, CACHE_LINE_BYTES):
        at = builder.add(k, _constant(line // element_bytes))
        _fetch_line(builder, builder.gep(ahead, [at]))


@intrinsic
def maximum(typing_context, values, length):
    """The largest of `length` float32, NaNs passed over; -inf for none."""
    signature = types.float32(values, types.int64)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        values, length = args
        vector = ir.VectorType(F32, LANES)
        lowest = ir.Constant(vector, [float("-inf")] * LANES)
        accumulator = cgutils.alloca_once(builder, vector)
        builder.store(lowest, accumulator)

        def keep_larger(candidate: ir.Value) -> None:
            old = builder.load(accumulator)
            larger = builder.fcmp_ordered(">", candidate, old)
            builder.store(builder.select(larger, candidate, old), accumulator)

        whole = builder.and_(length, _constant(-LANES))
        with cgutils.for_range_slice(builder, _constant(0), whole, _constant(LANES),
                                     I64) as (k, _):
            keep_larger(_vector_load(builder, values, k, types.float32))
        with builder.if_then(builder.icmp_signed("<", whole, length)):
            mask = _first_lanes(builder, builder.sub(length, whole))
            rest = _vector_load(builder, values, whole, types.float32, mask)
            keep_larger(builder.select(mask, rest, lowest))
        kind = ir.FunctionType(F32, [vector])
        reduce = cgutils.get_or_insert_function(builder.module, kind,
                                                f"llvm.vector.reduce.fmax.v{LANES}f32")
        return builder.call(reduce, [builder.load(accumulator)])

    return signature, codegen


@intrinsic
def begin_stream(typing_context, weight):
    """Prefetches what `dot_block` does not: the first FETCH_AHEAD_BYTES of a run of weights."""
    signature = types.void(weight)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> None:
        first = builder.bitcast(args[0], ir.IntType(8).as_pointer())
        with cgutils.for_range_slice(builder, _constant(0), _constant(FETCH_AHEAD_BYTES),
                                     _constant(CACHE_LINE_BYTES), I64) as (offset, _):
            _fetch_line(builder, builder.gep(first, [offset]))

    return signature, codegen


def _total(builder: ir.IRBuilder, accumulators: list[ir.Value]) -> ir.Value:
    parts = [builder.load(accumulator) for accumulator in accumulators]
    while len(parts) > 1:
        parts = [builder.fadd(*parts[k:k + 2]) if k + 1 < len(parts) else parts[k]
                 for k in range(0, len(parts), 2)]
    return parts[0]


@intrinsic(prefer_literal=True)
def sum_rows_block(typing_context, coefficient, coefficient_stride, rows, row_stride, length, out,
                   out_stride, columns, ahead, out_rows, vectors):
    """out[m, d] += Σ_t coefficient[m, t] * rows[t, d] for `length` rows t and d < `columns`.

    `out_rows` and `vectors` are literals; `columns` is at most `vectors` * LANES. While an element
    of `rows` is read, its counterpart in `ahead` is fetched into the cache, unless `ahead` is None.
    """
    storage = rows.dtype
    m_rows, width = out_rows.literal_value, vectors.literal_value
    fetches = ahead != types.none
    signature = types.void(coefficient, types.int64, rows, types.int64, types.int64, out,
                           types.int64, types.int64, ahead, out_rows, vectors)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> None:
        (coefficient, coefficient_stride, rows, row_stride, length, out, out_stride, columns,
         ahead, _, _) = args
        vector = ir.VectorType(F32, LANES)
        # only the last vector may be cut; with several, the caller passes whole ones
        mask = _first_lanes(builder, columns) if width == 1 else None
        targets = [[builder.add(builder.mul(out_stride, _constant(m)), _constant(v * LANES))
                    for v in range(width)] for m in range(m_rows)]
        accumulators = [[cgutils.alloca_once(builder, vector) for _ in range(width)]
                        for _ in range(m_rows)]
        for m in range(m_rows):
            for v in range(width):
                builder.store(_vector_load(builder, out, targets[m][v], types.float32, mask),
                              accumulators[m][v])
        with cgutils.for_range(builder, length) as loop:
            first = builder.mul(loop.index, row_stride)
            if fetches:
                _fetch(builder, ahead, first, width * LANES, storage)
            row = builder.gep(rows, [first])
            values = [_vector_load(builder, row, _constant(v * LANES), storage, mask)
                      for v in range(width)]
            for m in range(m_rows):
                index = builder.add(builder.mul(coefficient_stride, _constant(m)), loop.index)
                spread = _splat(builder, builder.load(builder.gep(coefficient, [index])))
                for v in range(width):
                    _multiply_add(builder, accumulators[m][v], spread, values[v])
        for m in range(m_rows):
            for v in range(width):
                _vector_store(builder, builder.load(accumulators[m][v]), out, targets[m][v],
                              types.float32, mask)

    return signature, codegen
