"""One device-function body for every random graph, and the same arithmetic in numpy.

A tile folds all it reads into one number, spoils its outputs for a while, and then writes numbers
that depend on that one: a task that reads too early or is overwritten changes the final memory.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
from program_order import Access, Program

from event_tensor.device_function import WHOLE, DeviceFunction, Operand, Span, Tile
from event_tensor.graph import Call, Graph
from event_tensor.symbols import as_expr
from event_tensor.tensors import TensorSpec
from persistent_runtime.cpu.bodies.arguments import (
    FLOAT32,
    INT32,
    dim,
    is_given,
    operand,
    record_offsets,
)
from persistent_runtime.cpu.compile.registry import cpu_body
from persistent_runtime.cpu.jit import device_jit

OPERANDS = ("in0", "in1", "out0", "out1")
BOX = ("by_tile0", "by_tile1", "offset", "length")  # of one dimension of one operand
BOX_PARAMETERS = tuple(f"{name}_{d}_{part}" for name in OPERANDS for d in (0, 1) for part in BOX)
PARAMETERS = (*BOX_PARAMETERS, "out0_is_read", "out1_is_read", "salt")
HASH_BITS, VALUE_BITS = (1 << 30) - 1, (1 << 20) - 1  # float32 holds every value exactly
DTYPES = ("int32", "float32")


def _declared(dtype: str, axes: tuple[str, ...], operands: tuple[Operand, ...]) -> DeviceFunction:
    """Bodies are found by declaration, and each has a name of its own."""
    digest = hashlib.sha256(repr((axes, operands)).encode()).hexdigest()[:12]
    return DeviceFunction(f"mix_{dtype}_{digest}", axes, operands, PARAMETERS)


def _operand(name: str, access: str = "read", region=(WHOLE,)) -> Operand:
    return Operand(name, access, region, optional=True)  # type: ignore[arg-type]


DECLARATIONS = {dtype: _declared(dtype, ("i", "j"), tuple(map(_operand, OPERANDS)))
                for dtype in DTYPES}
MIX = record_offsets(DECLARATIONS["int32"])


@device_jit
def _range(arguments, tile, at, box, axis):
    begin = (arguments[box + 4 * axis] * tile[0] + arguments[box + 4 * axis + 1] * tile[1]
             + arguments[box + 4 * axis + 2])
    return begin, min(begin + arguments[box + 4 * axis + 3], dim(arguments, at, axis))


@device_jit
def _fold(arguments, tile, at, box, state, like):
    """state + sum of (value + 1) * (index + 1) over the operand's box"""
    if not is_given(arguments, at):
        return state
    cells = operand(arguments, at, like)
    row_begin, row_end = _range(arguments, tile, at, box, 0)
    column_begin, column_end = _range(arguments, tile, at, box, 1)
    columns = dim(arguments, at, 1)
    for row in range(row_begin, row_end):
        for column in range(column_begin, column_end):
            index = row * columns + column
            state += (np.int64(cells[index]) + 1) * (index + 1)
    return state & HASH_BITS


@device_jit
def _fill(arguments, tile, at, box, state, spoil, like):
    if not is_given(arguments, at):
        return
    cells = operand(arguments, at, like)
    row_begin, row_end = _range(arguments, tile, at, box, 0)
    column_begin, column_end = _range(arguments, tile, at, box, 1)
    columns = dim(arguments, at, 1)
    for row in range(row_begin, row_end):
        for column in range(column_begin, column_end):
            index = row * columns + column
            cells[index] = like - 1 if spoil else like + ((state + 97 * index) & VALUE_BITS)


@device_jit
def _mix(arguments, tile, like):
    state = np.int64(arguments[MIX.salt] + 7919 * tile[0] + 104729 * tile[1])
    state = _fold(arguments, tile, MIX.in0, MIX.in0_0_by_tile0, state, like)
    state = _fold(arguments, tile, MIX.in1, MIX.in1_0_by_tile0, state, like)
    if arguments[MIX.out0_is_read] != 0:
        state = _fold(arguments, tile, MIX.out0, MIX.out0_0_by_tile0, state, like)
    if arguments[MIX.out1_is_read] != 0:
        state = _fold(arguments, tile, MIX.out1, MIX.out1_0_by_tile0, state, like)
    _fill(arguments, tile, MIX.out0, MIX.out0_0_by_tile0, state, True, like)
    _fill(arguments, tile, MIX.out1, MIX.out1_0_by_tile0, state, True, like)
    for _ in range(state & 63):
        state = (state * 1103515245 + 12345) & HASH_BITS
    _fill(arguments, tile, MIX.out0, MIX.out0_0_by_tile0, state, False, like)
    _fill(arguments, tile, MIX.out1, MIX.out1_0_by_tile0, state, False, like)


@cpu_body(DECLARATIONS["int32"])
def mix_int32(arguments, tile, step, scratch, formats):
    _mix(arguments, tile, INT32)


@cpu_body(DECLARATIONS["float32"])
def mix_float32(arguments, tile, step, scratch, formats):
    _mix(arguments, tile, FLOAT32)


BODIES = {"int32": mix_int32, "float32": mix_float32}


def mix_function(dtype: str, axes: tuple[str, ...], operands: tuple[Operand, ...]
                 ) -> DeviceFunction:
    """A declaration for these operands, with the body that all of its dtype share."""
    declaration = _declared(dtype, axes, operands)
    cpu_body(declaration)(BODIES[dtype])
    return declaration


def executable(graph: Graph, dtype: str) -> Graph:
    """The same graph with every device function replaced by one that has a body."""
    tensors = {t: TensorSpec(t.name, t.shape, dtype) for t in graph.tensors()}
    return Graph(graph.name, [_executable_call(call, tensors, dtype) for call in graph.calls])


def _executable_call(call: Call, tensors: dict[TensorSpec, TensorSpec], dtype: str) -> Call:
    present = {o.name: (o, tensor) for o, tensor in call.accesses()}
    parameters = dict.fromkeys(PARAMETERS, as_expr(0)) | {"salt": as_expr(call.index + 1)}
    operands, args = [], []
    for name in OPERANDS:
        if name not in present:
            operands.append(_operand(name))
            args.append(None)
            continue
        declared, tensor = present[name]
        operands.append(_operand(name, declared.access, declared.region))
        args.append(tensors[tensor])
        parameters[f"{name}_1_length"] = as_expr(1)
        for d, (part, size) in enumerate(zip(declared.region, tensor.shape, strict=True)):
            box = _box(part, size, call.function.axes)
            parameters |= {f"{name}_{d}_{key}": value for key, value in box.items()}
        if name.startswith("out"):
            parameters[f"{name}_is_read"] = as_expr(declared.access == "update")
    return replace(call, function=mix_function(dtype, call.function.axes, tuple(operands)),
                   args=tuple(args), parameters=parameters)


def _box(part, size, axes):
    if isinstance(part, Tile):
        return {f"by_tile{axes.index(part.axis)}": part.size, "length": part.size}
    if not isinstance(part, Span):
        return {"length": size}
    origin = part.start.substitute(dict.fromkeys(axes, 0))
    steps = {f"by_tile{k}": part.start.substitute(dict.fromkeys(axes, 0) | {axis: 1}) - origin
             for k, axis in enumerate(axes)}
    return steps | {"offset": origin, "length": part.length}


def run_in_program_order(program: Program, dtype: str) -> dict[str, np.ndarray]:
    """Final memory of the executable table, one task after another in numpy."""
    table = program.table
    memory = start_memory(program, dtype)
    for task in range(table.num_tasks):
        salt = int(table.call[task]) + 1
        state = salt + 7919 * int(table.tile[task, 0]) + 104729 * int(table.tile[task, 1])
        for access in program.accesses[task]:
            if access.reads:
                cells = memory[access.tensor][access.box].astype(np.int64)
                state += int(((cells + 1) * (_indices(memory, access) + 1)).sum())
                state &= HASH_BITS
        for _ in range(state & 63):
            state = (state * 1103515245 + 12345) & HASH_BITS
        for access in program.accesses[task]:
            if access.writes:
                memory[access.tensor][access.box] = (
                    state + 97 * _indices(memory, access)) & VALUE_BITS
    return memory


def start_memory(program: Program, dtype: str) -> dict[str, np.ndarray]:
    return {name: (np.arange(int(np.prod(shape)), dtype=np.int64) * 31 % 1000).astype(
        dtype).reshape(shape) for name, shape in program.shapes.items()}


def _indices(memory: dict[str, np.ndarray], access: Access) -> np.ndarray:
    shape = memory[access.tensor].shape
    return np.arange(int(np.prod(shape))).reshape(shape)[access.box]
