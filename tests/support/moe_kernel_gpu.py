"""GPU bodies of the integer mixture of experts in moe_kernel.py, and one launch of it."""

import moe_kernel as moe
import numpy as np
import test_moe_schedules as references
import torch
import triton
import triton.language as tl
from task_counts import task_counts

from persistent_runtime.gpu.bodies.arguments import (
    STEP_INDEX,
    dim,
    operand,
    record_offsets,
    word,
)
from persistent_runtime.gpu.compile.registry import gpu_body
from persistent_runtime.megakernel import Megakernel

PICK, GROUP, UP, DOWN, MERGE = map(record_offsets, (moe.PICK, moe.GROUP, moe.UP, moe.DOWN,
                                                    moe.MERGE))
EXPERTS, TILE_M, WIDTH = tl.constexpr(moe.EXPERTS), tl.constexpr(moe.TILE_M), tl.constexpr(
    moe.WIDTH)
COLUMNS, MASK, LANES = tl.constexpr(moe.COLUMNS), tl.constexpr(moe.MASK), tl.constexpr(32)


@gpu_body(moe.PICK)
@triton.jit(noinline=True)
def moe_pick(arguments, tile, step, CONFIG: tl.constexpr):
    top_k = dim(arguments, PICK.routes, 2)
    size = dim(arguments, PICK.routes, 1) * top_k
    use = (step[STEP_INDEX] + word(arguments, PICK.layer)) % dim(arguments, PICK.routes, 0)
    routes = operand(arguments, PICK.routes, tl.int32) + use * size
    tile_rows = operand(arguments, PICK.tile_rows, tl.int32)
    indptr = operand(arguments, PICK.indptr, tl.int32)
    slots = dim(arguments, PICK.tile_rows, 0) * TILE_M
    for first in tl.range(0, slots, LANES):
        slot = first + tl.arange(0, LANES)
        tl.store(tile_rows + slot, -1, mask=slot < slots)
    tl.debug_barrier()
    tl.store(indptr, 0)
    begin = size * 0
    for expert in tl.range(0, EXPERTS):
        taken = size * 0
        for first in tl.range(0, size, LANES):
            c = first + tl.arange(0, LANES)
            chosen = tl.load(routes + c, mask=c < size, other=-1) == expert
            number = chosen.to(tl.int32)
            slot = begin * TILE_M + taken + tl.cumsum(number, axis=0) - number
            tl.store(operand(arguments, PICK.ids, tl.int32) + c, expert, mask=chosen)
            tl.store(operand(arguments, PICK.place, tl.int32) + c, slot, mask=chosen)
            tl.store(tile_rows + slot, c // top_k, mask=chosen)
            taken += tl.sum(number, axis=0)
        tl.store(operand(arguments, PICK.counts, tl.int32) + expert, taken)
        begin += tl.cdiv(taken, TILE_M)
        tl.store(indptr + expert + 1, begin)


@gpu_body(moe.GROUP)
@triton.jit(noinline=True)
def moe_group(arguments, tile, step, CONFIG: tl.constexpr):
    choice = tile[0] * dim(arguments, GROUP.ids, 1) + tile[1]
    slot = tl.load(operand(arguments, GROUP.place, tl.int32) + choice)
    expert = tl.load(operand(arguments, GROUP.ids, tl.int32) + choice)
    column = tl.arange(0, LANES)
    x = tl.load(operand(arguments, GROUP.x, tl.int32) + tile[0] * WIDTH + column,
                mask=column < WIDTH)
    tl.store(operand(arguments, GROUP.grouped, tl.int32) + slot * WIDTH + column, 3 * x + expert,
             mask=column < WIDTH)


@triton.jit
def slot_columns(tile_rows, tile):
    """(slots, columns, which of them there are) of a tile; the slots are those that hold a row."""
    slot = tile[0] * TILE_M + tl.arange(0, LANES)[:, None]
    within = tl.arange(0, LANES)[:, None] < TILE_M
    row = tl.load(tile_rows + slot, mask=within, other=-1)
    column = tl.arange(0, LANES)[None, :]
    return slot, column, (row >= 0) & (column < WIDTH)


@gpu_body(moe.UP)
@triton.jit(noinline=True)
def moe_up(arguments, tile, step, CONFIG: tl.constexpr):
    slot, column, mask = slot_columns(operand(arguments, UP.tile_rows, tl.int32), tile)
    mask = mask & (column // COLUMNS == tile[1])
    grouped = tl.load(operand(arguments, UP.grouped, tl.int32) + slot * WIDTH + column, mask=mask)
    tl.store(operand(arguments, UP.inner, tl.int32) + slot * WIDTH + column,
             (grouped.to(tl.int64) * (column + 2) & MASK).to(tl.int32), mask=mask)


@gpu_body(moe.DOWN)
@triton.jit(noinline=True)
def moe_down(arguments, tile, step, CONFIG: tl.constexpr):
    slot, column, mask = slot_columns(operand(arguments, DOWN.tile_rows, tl.int32), tile)
    inner = tl.load(operand(arguments, DOWN.inner, tl.int32) + slot * WIDTH + column, mask=mask,
                    other=0)
    total = tl.sum(inner.to(tl.int64), axis=1)[:, None]
    mask = mask & (column // COLUMNS == tile[1])
    tl.store(operand(arguments, DOWN.out, tl.int32) + slot * WIDTH + column,
             (total * (column + 1) & MASK).to(tl.int32), mask=mask)


@gpu_body(moe.MERGE)
@triton.jit(noinline=True)
def moe_merge(arguments, tile, step, CONFIG: tl.constexpr):
    top_k = dim(arguments, MERGE.place, 1)
    column = tl.arange(0, LANES)
    x = operand(arguments, MERGE.x, tl.int32) + tile[0] * WIDTH + column
    total = tl.load(x, mask=column < WIDTH).to(tl.int64)
    for c in tl.range(tile[0] * top_k, (tile[0] + 1) * top_k):
        slot = tl.load(operand(arguments, MERGE.place, tl.int32) + c)
        total += tl.load(operand(arguments, MERGE.out, tl.int32) + slot * WIDTH + column,
                         mask=column < WIDTH, other=0)
    tl.store(x, (total & MASK).to(tl.int32), mask=column < WIDTH)


def launch(kernel, routes, steps):
    """(x before, x after `steps` steps, the launch), over fresh memory of the kernel's backend."""
    bindings = {"n": routes.shape[1], "k": routes.shape[2], "steps": len(routes)}
    buffers = kernel.backend.buffers()
    for spec in kernel.graph.tensors():
        shape = tuple(int(d.evaluate(bindings)) for d in spec.shape)
        memory = torch.as_tensor(buffers.allocate(spec, shape))  # on the host or on the device
        if spec.name == "routes":
            memory.copy_(torch.from_numpy(routes))
        elif spec.name == "x":
            x, before = spec, (np.arange(np.prod(shape)).reshape(shape) * 7919 % 1000).astype(
                np.int32)
            memory.copy_(torch.from_numpy(before))
    running = kernel.launch([kernel.segment(bindings, buffers, steps=steps)], timeout_s=30)
    running.wait()
    return before, buffers.array(x), running


def check_routings(backend, workers, policy, steps, names=None):
    """Routings of test_moe_schedules, by default all: exact integers, and exactly the routed tiles
    ran."""
    kernel = Megakernel(moe.moe_graph(references.LAYERS), backend=backend, policy=policy,
                        workers=workers, samples=references.samples)
    for name in names or references.routings():
        routes = references.routings()[name]
        before, after, running = launch(kernel, routes, steps)
        expected = moe.run_reference(before, routes, steps, references.LAYERS)
        np.testing.assert_array_equal(after, expected, err_msg=name)
        counts, = task_counts(running)
        for layer in range(references.LAYERS):
            used = sum(int(moe.route(routes[(step + layer) % len(routes)])["indptr"][-1])
                       for step in range(steps))
            references.check_counts(counts, layer, policy, used, steps, routes)
