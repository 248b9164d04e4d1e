"""Cores that others want: workers sleep while they wait, and give way between tasks.

A worker that has polled for a while gives its core to the system, for another worker may stand in
line for it. A yield would hand it to any program for a whole time slice, whereas a sleeper is
served soon when it is woken. What it waits for stands in its berth; whoever moves a counter there,
or pushes a task, wakes it.

No wake-up is lost. A sleeper fills its berth, adds itself to SLEEPERS and then looks at its
counter and at the queue once more; a notifier adds to the counter, or fills a slot, and then looks
at SLEEPERS. All four are in one total order (seq_cst; a fence stands behind the sleeper's addition,
and between filling a slot and the look). So either the sleeper sees the new count and stays awake,
or the notifier sees the sleeper, and with it the berth. A notifier that reads a berth while it is
filled for another wait may wake its owner for nothing; that one looks, and sleeps again. Of several
that would wake a sleeper the first does. The abort word wakes nobody: a sleep ends by itself after
SLEEP_NS.

The system takes a core away when a time slice is over, which is amid a task; all that wait for the
task then wait as long as others have the core. Where tasks come from the queue, a worker that
offers its core between two of them holds up nobody: another worker takes the tasks.
"""

from __future__ import annotations

import platform
import sys

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.intrinsics import (
    I64,
    atomic_add,
    compare_and_swap,
    emit_yield,
    keep_out_of_line,
    load_acquire,
    load_in_order,
    monotonic_ns,
    pointer_to,
    store_release,
    yield_thread,
)
from persistent_runtime.cpu.worker.slots import (
    INT32_BYTES,
    INT64,
    INT64_BYTES,
    first_task,
)
from persistent_runtime.rows import layout

# A turn is shorter than the system's time slice. Of two looks at the clock that are further apart,
# others have had the core between them.
TURN_NS, TASKS_PER_LOOK = 1_000_000, 8
BERTH_BYTES = layout.BERTH_WORDS * INT64_BYTES
SLEEPERS_OFFSET = layout.SLEEPERS * INT32_BYTES
FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE = 0 | 128, 1 | 128  # linux/futex.h
# the number of the futex call; elsewhere a sleeper yields its core, and nothing wakes it
FUTEX_CALL = {"x86_64": 202, "aarch64": 98, "riscv64": 98}.get(
    platform.machine().lower() if sys.platform == "linux" else "")
SECOND_NS = 10**9


def _futex(builder: ir.IRBuilder, word: ir.Value, operation: int, timeout: ir.Value) -> None:
    kind = ir.FunctionType(I64, [I64], var_arg=True)
    call = cgutils.get_or_insert_function(builder.module, kind, "syscall")
    none = ir.Constant(I64, 0)
    builder.call(call, [ir.Constant(I64, FUTEX_CALL), word, ir.Constant(I64, operation),
                        ir.Constant(I64, 1), timeout, none, none])


@intrinsic
def futex_wait(typing_context, word, longest_ns):
    """Sleeps while the int32 at an int64 address is 1, at most for so many nanoseconds."""

    def codegen(context, builder, signature, args):
        if FUTEX_CALL is None:
            emit_yield(builder)
            return
        timespec = cgutils.alloca_once(builder, ir.LiteralStructType([I64, I64]))
        second = ir.Constant(I64, SECOND_NS)
        for k, part in enumerate((builder.sdiv(args[1], second), builder.srem(args[1], second))):
            builder.store(part, cgutils.gep_inbounds(builder, timespec, 0, k))
        _futex(builder, args[0], FUTEX_WAIT_PRIVATE, builder.ptrtoint(timespec, I64))

    return types.void(types.int64, types.int64), codegen


@intrinsic
def futex_wake(typing_context, word):
    """Wakes the thread that sleeps at an int64 address."""

    def codegen(context, builder, signature, args):
        if FUTEX_CALL is not None:
            _futex(builder, args[0], FUTEX_WAKE_PRIVATE, ir.Constant(I64, 0))

    return types.void(types.int64), codegen


@intrinsic
def fence(typing_context):
    """Stores before it are visible to all before loads after it are done."""

    def codegen(context, builder, signature, args):
        builder.fence("seq_cst")

    return types.void(), codegen


@device_jit
def berth_of(launch, worker):
    return launch[layout.BERTHS] + worker * BERTH_BYTES


@device_jit
def give_way(state):
    """Between two queued tasks: offers the core to others when this worker's turn is over."""
    berth = pointer_to(berth_of(state.launch, state.worker), INT64)
    berth[layout.BERTH_TASKS] += 1
    if berth[layout.BERTH_TASKS] % TASKS_PER_LOOK != 0:
        return
    now = monotonic_ns()
    if now - berth[layout.BERTH_LOOKED] > TURN_NS:
        berth[layout.BERTH_TURN] = now
    elif now - berth[layout.BERTH_TURN] > TURN_NS:
        yield_thread()
        now = monotonic_ns()
        berth[layout.BERTH_TURN] = now
    berth[layout.BERTH_LOOKED] = now


@device_jit
def anyone_sleeps(launch):
    """To be asked after a counter has been moved."""
    return load_in_order(launch[layout.CONTROL] + SLEEPERS_OFFSET) != 0


@device_jit
def sleep(state, counter, target, pops):
    """Sleeps until the counter has reached the target or, if it pops, the ready queue has a task,
    at most for SLEEP_NS, perhaps not at all."""
    keep_out_of_line()
    launch = state.launch
    address = berth_of(launch, state.worker)
    berth = pointer_to(address, INT64)
    sleepers = launch[layout.CONTROL] + SLEEPERS_OFFSET
    berth[layout.BERTH_COUNTER], berth[layout.BERTH_TARGET] = counter, target
    berth[layout.BERTH_POPS] = pops
    store_release(address, np.int32(1))
    atomic_add(sleepers, np.int32(1))
    fence()
    if load_acquire(counter) < target and not (pops != 0 and first_task(launch)[1]):
        futex_wait(address, launch[layout.SLEEP_NS])
    atomic_add(sleepers, np.int32(-1))
    store_release(address, np.int32(0))


@device_jit
def wake(address):
    """Whether someone was asleep there, whom nobody else has woken."""
    if not compare_and_swap(address, np.int32(1), np.int32(0)):
        return False
    futex_wake(address)
    return True


@device_jit
def wake_for_count(launch, counter, seen):
    """Wakes whoever sleeps until the counter has reached what it stands at now."""
    keep_out_of_line()
    for worker in range(launch[layout.NUM_WORKERS]):
        address = berth_of(launch, worker)
        berth = pointer_to(address, INT64)
        if load_acquire(address) != 0 and berth[layout.BERTH_COUNTER] == counter and (
                seen >= berth[layout.BERTH_TARGET]):
            wake(address)


@device_jit
def wake_for_stored(launch, counter, value):
    """As `wake_for_count`, after a counter has been stored to instead of added to."""
    fence()
    if anyone_sleeps(launch):
        wake_for_count(launch, counter, value)


@device_jit
def wake_to_pop(launch, count):
    """Wakes as many as there are new tasks in the ready queue."""
    keep_out_of_line()
    for worker in range(launch[layout.NUM_WORKERS]):
        address = berth_of(launch, worker)
        if load_acquire(address) != 0 and pointer_to(address, INT64)[layout.BERTH_POPS] != 0:
            if wake(address):
                count -= 1
                if count == 0:
                    return
