"""Two register-blocked inner loops as explicit vector IR: products along rows, and sums of rows.

LLVM's own vectoriser handles simple loops well, but not a block of many accumulators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from persistent_runtime.cpu.vectors.block_types import BlockType, elements_of, load_block
from persistent_runtime.cpu.vectors.emit import (
    ACCUMULATORS_IN_FLIGHT,
    CACHE_LINE_BYTES,
    DOTS_BFLOAT16,
    FETCH_AHEAD_BYTES,
    LANES,
    BFloat16Type,
    constant,
    fetch,
    fetch_line,
    first_lanes,
    multiply_add,
    multiply_add_pairs,
    row_sums,
    splat,
    stored_load,
    total,
    vector_load,
    vector_store,
    zeroed,
)
from persistent_runtime.cpu.vectors.intrinsics import F32, I8, I16, I64


@intrinsic
def multiplicand(typing_context, like):
    """A zero of the type in which `dot_block` has x fastest beside weights stored as `like`."""
    kind = types.uint16 if DOTS_BFLOAT16 and like == types.uint16 else types.float32

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return context.get_constant_null(signature.return_type)

    return kind(like), codegen


@intrinsic
def shared_format(typing_context, first, second):
    """The first of two zeros where both have one type, else a zero of float32."""
    kind = first if first == second else types.float32

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        return context.get_constant_null(signature.return_type)

    return kind(first, second), codegen


@intrinsic
def round_block(typing_context, x, length, out):
    """out = x for `length` float32, rounded to nearest even where out is bfloat16; out may begin
    where x does. For machines where DOTS_BFLOAT16; subnormal numbers become zero there."""
    signature = types.void(x, types.int64, out)
    storage = out.dtype

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> None:
        x, length, out = args

        def convert(k: ir.Value, mask: ir.Value | None = None) -> None:
            value = vector_load(builder, x, k, types.float32, mask)
            if storage == types.uint16:
                value = builder.fptrunc(value, ir.VectorType(BFloat16Type(), LANES))
                value = builder.bitcast(value, ir.VectorType(I16, LANES))
            vector_store(builder, value, out, k, storage, mask)

        whole = builder.and_(length, constant(-LANES))
        with cgutils.for_range_slice(builder, constant(0), whole, constant(LANES),
                                     I64) as (k, _):
            convert(k)
        with builder.if_then(builder.icmp_signed("<", whole, length), likely=False):
            convert(whole, first_lanes(builder, builder.sub(length, whole)))

    return signature, codegen


WHOLE_SHARE = 256  # what the shares of the calls that read the same weights add up to


@intrinsic(prefer_literal=True)
def dot_block(typing_context, weight, x, x_stride, length, out, out_stride, keep, ahead, share,
              count, weight_rows, x_rows):
    """out[m, n] = keep * out[m, n] + Σ_k weight[n, k] * x[m, k] for `length` columns k.

    x is float32, or bfloat16 beside bfloat16 weights where DOTS_BFLOAT16. `weight_rows` (a power
    of two) and `x_rows` are literals; weight rows follow one another, of elements or whole blocks.
    Of the rows of x there are `count` >= 1; for those that lack the last one is computed again.
    keep is 0 or 1, and with 0 the old contents are not looked at. While the weights are read, as
    many bytes from address `ahead` on, times share / WHOLE_SHARE, are fetched into the cache.
    """
    storage, x_storage = weight.dtype, x.dtype
    in_pairs = x_storage == types.uint16
    lanes, add = (2 * LANES, multiply_add_pairs) if in_pairs else (LANES, multiply_add)
    n_rows, m_rows = weight_rows.literal_value, x_rows.literal_value
    sums, of_item = max(1, ACCUMULATORS_IN_FLIGHT // (n_rows * m_rows)), elements_of(storage)
    turn_bytes = n_rows * storage.bitwidth // 8 * (1 if of_item > 1 else sums * lanes)
    signature = types.void(weight, x, types.int64, types.int64, out, types.int64, types.int64,
                           types.int64, types.int64, types.int64, weight_rows, x_rows)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> None:
        weight, x, x_stride, length, out, out_stride, keep, ahead, share, count, _, _ = args
        vector = ir.VectorType(F32, LANES)
        accumulators = [[[zeroed(builder, vector) for _ in range(sums)]
                         for _ in range(n_rows)] for _ in range(m_rows)]
        row_items = builder.sdiv(length, constant(of_item)) if of_item > 1 else length
        weights = [builder.gep(weight, [builder.mul(row_items, constant(n))])
                   for n in range(n_rows)]
        numbers = [first_of(builder, constant(m), builder.sub(count, constant(1)))
                   for m in range(m_rows)]
        xs = [builder.gep(x, [builder.mul(x_stride, m)]) for m in numbers]
        fetch_turn = fetches(builder, ahead, share, 0 if in_pairs else turn_bytes)

        def load(pointer: ir.Value, k: ir.Value, storage: types.Type, mask: ir.Value | None
                 ) -> ir.Value:
            if in_pairs:
                return stored_load(builder, pointer, k, storage, mask, lanes)
            return vector_load(builder, pointer, k, storage, mask)

        def products(rows: list[ir.Value], k: ir.Value, part: int, mask: ir.Value | None = None
                     ) -> None:
            """Elements of the weight rows from k on, one vector of each, times those of x."""
            for m in range(m_rows):
                column = load(xs[m], k, x_storage, mask)
                for n in range(n_rows):
                    add(builder, accumulators[m][n][part % sums], rows[n], column)

        def elements(k: ir.Value, part: int, mask: ir.Value | None = None) -> None:
            products([load(w, k, storage, mask) for w in weights], k, part, mask)

        def rounded_down(vectors: int) -> ir.Value:
            return builder.and_(length, constant(-vectors * lanes))

        if isinstance(storage, BlockType):
            with cgutils.for_range(builder, row_items) as loop:
                fetch_turn()
                rows = [load_block(builder, builder.gep(w, [loop.index]), storage)
                        for w in weights]
                first = builder.mul(loop.index, constant(of_item))
                for part, vectors in enumerate(zip(*rows, strict=True)):
                    products(list(vectors), builder.add(first, constant(part * lanes)), part)
        else:
            with cgutils.for_range_slice(builder, constant(0), rounded_down(sums),
                                         constant(sums * lanes), I64) as (k, _):
                fetch_turn()
                for part in range(sums):
                    elements(builder.add(k, constant(part * lanes)), part)
            whole = rounded_down(1)
            if sums > 1:
                with cgutils.for_range_slice(builder, rounded_down(sums), whole, constant(lanes),
                                             I64) as (k, _):
                    elements(k, 0)
            with builder.if_then(builder.icmp_signed("<", whole, length), likely=False):
                elements(whole, 0, first_lanes(builder, builder.sub(length, whole), lanes))

        keeps = builder.icmp_signed("!=", keep, constant(0))
        sums_kind = ir.VectorType(F32, n_rows)
        targets = [builder.bitcast(builder.gep(out, [builder.mul(out_stride, m)]),
                                   sums_kind.as_pointer()) for m in numbers]
        # all are loaded before one is stored: the last may be stored more than once
        old = [builder.select(keeps, builder.load(target, align=4), ir.Constant(sums_kind, None))
               for target in targets]
        for m, target in enumerate(targets):
            of_rows = row_sums(builder, [total(builder, parts) for parts in accumulators[m]])
            builder.store(builder.fadd(old[m], of_rows), target, align=4)

    return signature, codegen


def first_of(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The smaller of two integers."""
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def fetches(builder: ir.IRBuilder, ahead: ir.Value, share: ir.Value, turn_bytes: int
            ) -> Callable[[], None]:
    """Emits what each turn of a loop that reads `turn_bytes` fetches: `share` of as many, and the
    place moves on from address `ahead`."""
    place = cgutils.alloca_once_value(builder, ahead)
    moved = builder.mul(share, constant(turn_bytes))
    moved = builder.sdiv(builder.add(moved, constant(WHOLE_SHARE - 1)), constant(WHOLE_SHARE))

    def fetch_turn() -> None:
        address = builder.load(place)
        first = builder.inttoptr(address, I8.as_pointer())
        for line in range(0, turn_bytes, CACHE_LINE_BYTES):
            fetch_line(builder, builder.gep(first, [constant(line)]))
        builder.store(builder.add(address, moved), place)

    return fetch_turn


@intrinsic
def widen_row(typing_context, row, length, out):
    """out = a stored row of `length` elements, as float32."""
    signature = types.void(row, types.int64, out)
    storage = row.dtype

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> None:
        row, length, out = args
        if isinstance(storage, BlockType):
            size = constant(storage.stored.block_elements)
            with cgutils.for_range(builder, builder.sdiv(length, size)) as loop:
                block = load_block(builder, builder.gep(row, [loop.index]), storage)
                for part, value in enumerate(block):
                    k = builder.add(builder.mul(loop.index, size), constant(part * LANES))
                    vector_store(builder, value, out, k, types.float32, None)
            return

        def widened(k: ir.Value, mask: ir.Value | None = None) -> None:
            value = vector_load(builder, row, k, storage, mask)
            vector_store(builder, value, out, k, types.float32, mask)

        whole = builder.and_(length, constant(-LANES))
        with cgutils.for_range_slice(builder, constant(0), whole, constant(LANES), I64) as (k, _):
            widened(k)
        with builder.if_then(builder.icmp_signed("<", whole, length), likely=False):
            widened(whole, first_lanes(builder, builder.sub(length, whole)))

    return signature, codegen


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

        whole = builder.and_(length, constant(-LANES))
        with cgutils.for_range_slice(builder, constant(0), whole, constant(LANES),
                                     I64) as (k, _):
            keep_larger(vector_load(builder, values, k, types.float32))
        with builder.if_then(builder.icmp_signed("<", whole, length)):
            mask = first_lanes(builder, builder.sub(length, whole))
            rest = vector_load(builder, values, whole, types.float32, mask)
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
        with cgutils.for_range_slice(builder, constant(0), constant(FETCH_AHEAD_BYTES),
                                     constant(CACHE_LINE_BYTES), I64) as (offset, _):
            fetch_line(builder, builder.gep(first, [offset]))

    return signature, codegen


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
        mask = first_lanes(builder, columns) if width == 1 else None
        targets = [[builder.add(builder.mul(out_stride, constant(m)), constant(v * LANES))
                    for v in range(width)] for m in range(m_rows)]
        accumulators = [[cgutils.alloca_once(builder, vector) for _ in range(width)]
                        for _ in range(m_rows)]
        for m in range(m_rows):
            for v in range(width):
                builder.store(vector_load(builder, out, targets[m][v], types.float32, mask),
                              accumulators[m][v])
        with cgutils.for_range(builder, length) as loop:
            first = builder.mul(loop.index, row_stride)
            if fetches:
                fetch(builder, ahead, first, width * LANES, storage)
            row = builder.gep(rows, [first])
            values = [vector_load(builder, row, constant(v * LANES), storage, mask)
                      for v in range(width)]
            for m in range(m_rows):
                index = builder.add(builder.mul(coefficient_stride, constant(m)), loop.index)
                spread = splat(builder, builder.load(builder.gep(coefficient, [index])))
                for v in range(width):
                    multiply_add(builder, accumulators[m][v], spread, values[v])
        for m in range(m_rows):
            for v in range(width):
                vector_store(builder, builder.load(accumulators[m][v]), out, targets[m][v],
                             types.float32, mask)

    return signature, codegen
