"""The slots of the ready queue, which pushes fill and pops take; queue.py says in what order."""

from __future__ import annotations

import numpy as np

from persistent_runtime.cpu.jit import device_jit
from persistent_runtime.cpu.vectors.intrinsics import (
    compare_and_swap,
    load_acquire,
    load_acquire_int64,
    store_release_int64,
)
from persistent_runtime.rows import layout

INT32, INT64 = np.int32(0), np.int64(0)
INT32_BYTES, INT64_BYTES = 4, 8


@device_jit
def slot_of(launch, ticket):
    """Address of the slot that a ticket stands for."""
    return launch[layout.QUEUE] + (np.int64(ticket) & (launch[layout.QUEUE_CAPACITY] - 1)) * (
        INT64_BYTES)


@device_jit
def first_task(launch):
    """(ticket of the oldest task that nobody has taken, whether there is one, its row)"""
    ticket = load_acquire(launch[layout.CONTROL] + layout.HEAD * INT32_BYTES)
    word = load_acquire_int64(slot_of(launch, ticket))
    return ticket, (word >> 32) == np.int64(np.int32(ticket + 1)), word & 0xFFFFFFFF


@device_jit
def take_task(launch, ticket):
    """Whether the task is this worker's now; False where another one was faster."""
    return compare_and_swap(launch[layout.CONTROL] + layout.HEAD * INT32_BYTES, ticket,
                            np.int32(ticket + 1))


@device_jit
def publish(launch, ticket, row):
    number = np.int64(np.int32(ticket + 1))
    store_release_int64(slot_of(launch, ticket), (number << 32) | np.int64(row))
