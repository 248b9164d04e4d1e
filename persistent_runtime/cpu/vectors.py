"""Two register-blocked inner loops as explicit vector IR: products along rows, and sums of rows.

LLVM's own vectoriser handles simple loops well, but not a block of many accumulators. Vectors are
as wide as the machine's registers; LLVM splits or widens them elsewhere, so nothing here requires
an instruction set.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from persistent_runtime.cpu.intrinsics import F32, I64, emit_widen

CPU_FEATURES: str = cpu_target.target_context.codegen().magic_tuple()[2]
_enabled = set(CPU_FEATURES.split(","))
LANES = 16 if "+avx512f" in _enabled else 8 if "+avx" in _enabled else 4  # float32 per register
MANY_REGISTERS = "+avx512f" in _enabled or "+neon" in _enabled  # 32 vector registers, else 16

# Independent accumulators that hide the latency of two fused multiply-adds per cycle.
ACCUMULATORS_IN_FLIGHT = 8

MULTIPLY_ADD = ("contract",)


def _constant(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


def _vector_load(builder: ir.IRBuilder, pointer: ir.Value, index: ir.Value,
                 storage: types.Type, lanes: int) -> ir.Value:
    """LANES stored elements from `pointer[index]`, as float32; alignment only of an element."""
    start = builder.gep(pointer, [index])
    kind = ir.VectorType(start.type.pointee, lanes)
    element_bytes = storage.bitwidth // 8
    loaded = builder.load(builder.bitcast(start, kind.as_pointer()), align=element_bytes)
    return emit_widen(builder, loaded, storage)


def _splat(builder: ir.IRBuilder, value: ir.Value, lanes: int) -> ir.Value:
    kind = ir.VectorType(value.type, lanes)
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I64, 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes)
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), mask)


def _add_up(builder: ir.IRBuilder, vector: ir.Value) -> ir.Value:
    kind = ir.FunctionType(F32, [F32, vector.type])
    name = f"llvm.vector.reduce.fadd.v{vector.type.count}f32"
    reduce = cgutils.get_or_insert_function(builder.module, kind, name)
    return builder.call(reduce, [ir.Constant(F32, 0.0), vector], fastmath=("reassoc",))


def _multiply_add(builder: ir.IRBuilder, accumulator: ir.Value, a: ir.Value,
                  b: ir.Value) -> None:
    product = builder.fmul(a, b, flags=MULTIPLY_ADD)
    old = builder.load(accumulator)
    builder.store(builder.fadd(old, product, flags=MULTIPLY_ADD), accumulator)


def _zeroed(builder: ir.IRBuilder, kind: ir.Type) -> ir.Value:
    accumulator = cgutils.alloca_once(builder, kind)
    builder.store(ir.Constant(kind, None), accumulator)
    return accumulator


@intrinsic(prefer_literal=True)
def dot_block(typing_context, weight, weight_stride, x, x_stride, length, out, out_stride, keep,
              weight_rows, x_rows):
    """out[m * out_stride + n] = keep * out[…] + Σ_k weight[n * weight_stride + k] * x[m * x_stride + k]

    for `weight_rows` × `x_rows` (literals) rows and k up to `length` rounded down to LANES;
    keep is 0 or 1, and with 0 the old contents are not looked at.
    """
    storage = weight.dtype
    n_rows, m_rows = weight_rows.literal_value, x_rows.literal_value
    integer = types.int64
    signature = types.void(weight, integer, x, integer, integer, out, integer, integer,
                           weight_rows, x_rows)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> None:
        weight, weight_stride, x, x_stride, length, out, out_stride, keep, _, _ = args
        vector = ir.VectorType(F32, LANES)
        unroll = max(1, ACCUMULATORS_IN_FLIGHT // (n_rows * m_rows))
        accumulators = [[[_zeroed(builder, vector) for _ in range(unroll)]
                         for _ in range(n_rows)] for _ in range(m_rows)]
        weights = [builder.gep(weight, [builder.mul(weight_stride, _constant(n))])
                   for n in range(n_rows)]
        xs = [builder.gep(x, [builder.mul(x_stride, _constant(m))]) for m in range(m_rows)]

        def products(start: ir.Value, stop: ir.Value, vectors: int) -> None:
            step = _constant(vectors * LANES)
            with cgutils.for_range_slice(builder, start, stop, step, I64) as (k, _):
                for u in range(vectors):
                    at = builder.add(k, _constant(u * LANES))
                    rows = [_vector_load(builder, w, at, storage, LANES) for w in weights]
                    for m in range(m_rows):
                        column = _vector_load(builder, xs[m], at, types.float32, LANES)
                        for n in range(n_rows):
                            _multiply_add(builder, accumulators[m][n][u], rows[n], column)

        def rounded_down(vectors: int) -> ir.Value:
            return builder.and_(length, _constant(-vectors * LANES))

        products(_constant(0), rounded_down(unroll), unroll)
        if unroll > 1:
            products(rounded_down(unroll), rounded_down(1), 1)

        keeps = builder.icmp_signed("!=", keep, _constant(0))
        for m in range(m_rows):
            for n in range(n_rows):
                parts = [builder.load(part) for part in accumulators[m][n]]
                while len(parts) > 1:
                    parts = [builder.fadd(a, b) for a, b in zip(parts[::2], parts[1::2],
                                                                strict=True)]
                index = builder.add(builder.mul(out_stride, _constant(m)), _constant(n))
                target = builder.gep(out, [index])
                old = builder.select(keeps, builder.load(target), ir.Constant(F32, 0.0))
                builder.store(builder.fadd(old, _add_up(builder, parts[0])), target)

    return signature, codegen


@intrinsic(prefer_literal=True)
def sum_rows_block(typing_context, coefficient, coefficient_stride, rows, row_stride, length, out,
                   out_stride, out_rows, vectors):
    """out[m * out_stride + d] += Σ_t coefficient[m * coefficient_stride + t] * rows[t * row_stride + d]

    for `out_rows` rows (literal) and d < `vectors` * LANES (literal); t runs to `length`.
    """
    storage = rows.dtype
    m_rows, width = out_rows.literal_value, vectors.literal_value
    integer = types.int64
    signature = types.void(coefficient, integer, rows, integer, integer, out, integer, out_rows,
                           vectors)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> None:
        coefficient, coefficient_stride, rows, row_stride, length, out, out_stride, _, _ = args
        vector = ir.VectorType(F32, LANES)
        targets = [[builder.bitcast(
            builder.gep(out, [builder.add(builder.mul(out_stride, _constant(m)),
                                          _constant(v * LANES))]), vector.as_pointer())
            for v in range(width)] for m in range(m_rows)]
        accumulators = [[cgutils.alloca_once(builder, vector) for _ in range(width)]
                        for _ in range(m_rows)]
        for m in range(m_rows):
            for v in range(width):
                builder.store(builder.load(targets[m][v], align=4), accumulators[m][v])
        with cgutils.for_range(builder, length) as loop:
            row = builder.gep(rows, [builder.mul(loop.index, row_stride)])
            values = [_vector_load(builder, row, _constant(v * LANES), storage, LANES)
                      for v in range(width)]
            for m in range(m_rows):
                index = builder.add(builder.mul(coefficient_stride, _constant(m)), loop.index)
                factor = builder.load(builder.gep(coefficient, [index]))
                spread = _splat(builder, factor, LANES)
                for v in range(width):
                    _multiply_add(builder, accumulators[m][v], spread, values[v])
        for m in range(m_rows):
            for v in range(width):
                builder.store(builder.load(accumulators[m][v]), targets[m][v], align=4)

    return signature, codegen
