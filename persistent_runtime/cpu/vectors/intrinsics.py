"""What numba lacks for a worker: typed addresses, atomics, polite spinning, 16-bit floats.

Weights and caches are `float32`, `uint16` (the bits of a bfloat16) or `int16` (the bits of a
float16); `widen` and `narrow` dispatch on that storage type, so every body is one generic source.
"""

from __future__ import annotations

import platform
import time

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()


@intrinsic
def pointer_to(typing_context, address, like):  # noqa: ANN201 (numba reads these signatures)
    """int64 address → pointer to elements of the type of `like`."""
    signature = types.CPointer(like)(types.int64, like)

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return signature, codegen


@intrinsic
def address_of(typing_context, pointer):
    """Pointer → int64 address."""
    signature = types.int64(pointer)

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(args[0], I64)

    return signature, codegen


@intrinsic
def item_bytes(typing_context, pointer):
    """Size of a pointer's elements."""
    size = pointer.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        return ir.Constant(I64, size)

    return types.int64(pointer), codegen


@intrinsic
def advance(typing_context, pointer, elements):
    """The pointer `elements` further on; None of None."""
    signature = pointer(pointer, types.int64)

    def codegen(context, builder, signature, args):
        if signature.return_type == types.none:
            return context.get_dummy_value()
        return builder.gep(args[0], [args[1]])

    return signature, codegen


def _int32_pointer(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, I32.as_pointer())


@intrinsic
def keep_out_of_line(typing_context):
    """Forbids inlining the function that calls this: big ones would be compiled many times."""

    def codegen(context, builder, signature, args):
        builder.function.attributes.add("noinline")

    return types.void(), codegen


@intrinsic
def atomic_add(typing_context, address, value):
    """Adds to the int32 at an int64 address; returns the old value. All of these and all of
    `load_in_order` are in one order (seq_cst)."""
    signature = types.int32(types.int64, types.int32)

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", _int32_pointer(builder, args[0]), args[1], "seq_cst")

    return signature, codegen


@intrinsic
def compare_and_swap(typing_context, address, old, new):
    """Replaces the int32 at an int64 address where it is `old`; returns whether it was. In one
    order with `atomic_add`."""
    signature = types.boolean(types.int64, types.int32, types.int32)

    def codegen(context, builder, signature, args):
        found = builder.cmpxchg(_int32_pointer(builder, args[0]), args[1], args[2], "seq_cst",
                                "seq_cst")
        return builder.extract_value(found, 1)

    return signature, codegen


def _loader(kind, order):
    """An intrinsic that loads a `kind` from an int64 address, in a memory order of LLVM's."""

    @intrinsic
    def load(typing_context, address):
        def codegen(context, builder, signature, args):
            pointer = builder.inttoptr(args[0], ir.IntType(kind.bitwidth).as_pointer())
            return builder.load_atomic(pointer, order, kind.bitwidth // 8)

        return kind(types.int64), codegen

    return load


def _releaser(kind):
    """An intrinsic that stores a `kind` at an int64 address, after all this thread stored before.
    """

    @intrinsic
    def store(typing_context, address, value):
        def codegen(context, builder, signature, args):
            pointer = builder.inttoptr(args[0], ir.IntType(kind.bitwidth).as_pointer())
            builder.store_atomic(args[1], pointer, "release", kind.bitwidth // 8)

        return types.void(types.int64, kind), codegen

    return store


# what the writer of the value released before is visible after these
load_acquire, load_acquire_int64 = _loader(types.int32, "acquire"), _loader(types.int64, "acquire")
load_in_order = _loader(types.int32, "seq_cst")  # and it is in one order with all of `atomic_add`
store_release, store_release_int64 = _releaser(types.int32), _releaser(types.int64)


@intrinsic
def pause(typing_context):
    """Tells the core that this thread spins; nothing on machines without such an instruction."""

    def codegen(context, builder, signature, args):
        machine = platform.machine().lower()
        if machine in ("x86_64", "amd64"):
            name, operands = "llvm.x86.sse2.pause", []
        elif machine in ("arm64", "aarch64"):
            name, operands = "llvm.aarch64.hint", [ir.Constant(I32, 1)]  # 1 is `yield`
        else:
            return
        kind = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), operands)

    return types.void(), codegen


def emit_yield(builder: ir.IRBuilder) -> None:
    kind = ir.FunctionType(I32, [])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])


@intrinsic
def yield_thread(typing_context):
    """Lets another thread have this core (libc `sched_yield`)."""

    def codegen(context, builder, signature, args):
        emit_yield(builder)

    return types.void(), codegen


@intrinsic
def monotonic_ns(typing_context):
    """Nanoseconds of CLOCK_MONOTONIC: `time.clock_gettime_ns(time.CLOCK_MONOTONIC)` outside."""

    def codegen(context, builder, signature, args):
        timespec = cgutils.alloca_once(builder, ir.LiteralStructType([I64, I64]))
        kind = ir.FunctionType(I32, [I32, timespec.type])
        clock_gettime = cgutils.get_or_insert_function(builder.module, kind, "clock_gettime")
        builder.call(clock_gettime, [ir.Constant(I32, int(time.CLOCK_MONOTONIC)), timespec])
        seconds = builder.load(cgutils.gep_inbounds(builder, timespec, 0, 0))
        nanoseconds = builder.load(cgutils.gep_inbounds(builder, timespec, 0, 1))
        return builder.add(builder.mul(seconds, ir.Constant(I64, 10**9)), nanoseconds)

    return types.int64(), codegen


@intrinsic
def call_device_function(typing_context, function, arguments, tile, step, scratch):
    """Calls `void(int64*, int32*, int64*, float*)`; everything is an int64 address, so a worker
    loop is compiled once for any set of device functions."""
    signature = types.void(*[types.int64] * 5)

    def codegen(context, builder, signature, args):
        pointers = [element.as_pointer() for element in (I64, I32, I64, F32)]
        kind = ir.FunctionType(ir.VoidType(), pointers)
        callee = builder.inttoptr(args[0], kind.as_pointer())
        operands = [builder.inttoptr(a, p) for a, p in zip(args[1:], pointers, strict=True)]
        builder.call(callee, operands)

    return signature, codegen


@intrinsic
def float64_from_bits(typing_context, bits):
    """The float64 whose bits an int64 holds: float parameters of argument records."""
    signature = types.float64(types.int64)

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], F64)

    return signature, codegen


@intrinsic
def float32_bits(typing_context, value):
    """The bits of a float32 as an int32."""
    signature = types.int32(types.float32)

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], I32)

    return signature, codegen


@intrinsic
def float32_from_bits(typing_context, bits):
    """The float32 whose bits an int32 holds."""
    signature = types.float32(types.int32)

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], F32)

    return signature, codegen


def emit_widen(builder: ir.IRBuilder, value: ir.Value, storage: types.Type) -> ir.Value:
    """IR that turns a stored scalar or vector into float32; `storage` is its element type."""
    if storage == types.float32:
        return value

    def same_shape(element: ir.Type) -> ir.Type:
        shape = value.type
        return ir.VectorType(element, shape.count) if isinstance(shape, ir.VectorType) else element

    if storage == types.uint16:  # bfloat16 is the upper half of a float32
        bits = builder.zext(value, same_shape(I32))
        sixteen = ir.Constant(I32, 16)
        if isinstance(bits.type, ir.VectorType):
            sixteen = ir.Constant(bits.type, [sixteen] * bits.type.count)
        return builder.bitcast(builder.shl(bits, sixteen), same_shape(F32))
    if storage == types.int16:
        return builder.fpext(builder.bitcast(value, same_shape(ir.HalfType())), same_shape(F32))
    raise TypeError(f"weights stored as {storage} cannot be widened; use float32, uint16 or int16")


@intrinsic
def widen(typing_context, value):
    """Stored weight → float32."""
    signature = types.float32(value)

    def codegen(context, builder, signature, args):
        return emit_widen(builder, args[0], signature.args[0])

    return signature, codegen


def _round_to_bfloat16(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    def constant(bits: int) -> ir.Constant:
        return ir.Constant(I32, bits)

    bits = builder.bitcast(value, I32)
    upper = builder.lshr(bits, constant(16))
    # nearest, ties to even: half of the last kept place, less one when that place is even
    bias = builder.add(constant(0x7FFF), builder.and_(upper, constant(1)))
    rounded = builder.lshr(builder.add(bits, bias), constant(16))
    quiet_nan = builder.or_(upper, constant(0x40))  # rounding could carry a NaN into infinity
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, quiet_nan, rounded), I16)


@intrinsic
def narrow(typing_context, value, like):
    """float32 → storage of the type of `like`, rounded to nearest even."""
    signature = like(types.float32, like)

    def codegen(context, builder, signature, args):
        storage = signature.args[1]
        if storage == types.uint16:
            return _round_to_bfloat16(builder, args[0])
        if storage == types.int16:
            return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), I16)
        return args[0]

    return signature, codegen
