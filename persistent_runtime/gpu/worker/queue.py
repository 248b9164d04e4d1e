"""The ready queue: tickets, pushes, and what the last notify of an event sets off.

The twin of cpu/worker/queue.py, which has the bounds. What is small and scattered is done by the
lanes of the CTA. Memory order:
- notifies of several lanes are acquire-release adds behind a CTA barrier: they publish what any
  thread of this CTA has stored or acquired. Whoever completes an event acquires the stores of all
  who notified it, and the barrier in front of a push hands them to the lanes that push;
- a push reserves slots with an add on TAIL and stores (ticket + 1) << 32 | row with release, an
  exchange per lane, again behind a barrier: all that the pusher saw is visible to the task. A join
  counts in PENDING with acquire-release adds, so its last event brings the others along;
- counters that are set back (PENDING, those of events with EVENT_RESETS) are so by plain stores
  before that barrier: nothing adds to them before the next step, and every way there leads over
  this CTA's later releases, of slots and of OUTSTANDING;
- OUTSTANDING grows before the barrier that precedes the slots: nobody can finish a conditional
  task that is not counted yet;
- a worker polls the slot of its ticket in sync.wait_event, with acquire.
"""

from __future__ import annotations

import triton
import triton.language as tl

from persistent_runtime.gpu.addresses import (
    COUNTER_BYTES,
    counter_at,
    flag_at,
    setting,
    ticket_of,
    words,
)
from persistent_runtime.rows import layout

INT64_BYTES = tl.constexpr(8)
LANES = tl.constexpr(128)


@triton.jit
def slot_of(launch, ticket):
    """Addresses of the slots that tickets stand for."""
    last = tl.load(launch + layout.QUEUE_CAPACITY) - 1
    return tl.load(launch + layout.QUEUE) + (ticket.to(tl.int64) & last) * INT64_BYTES


@triton.jit
def take_ticket(launch, worker):
    """The worker's next ticket; the barrier before its next wait hands it to whoever polls."""
    number = tl.atomic_add(counter_at(flag_at(launch, layout.HEAD)), 1, sem="relaxed", scope="gpu")
    ticket = ticket_of(launch, worker)
    tl.store(ticket + layout.SLOT, slot_of(launch, number))
    tl.store(ticket + layout.SLOT_NUMBER, (number + 1).to(tl.int64) & 0xFFFFFFFF)


@triton.jit
def popped_row(launch, worker):
    """The row in the slot of the worker's ticket, which is filled."""
    slot = words(tl.load(ticket_of(launch, worker) + layout.SLOT, volatile=True))
    return tl.load(slot, volatile=True).to(tl.int32)


@triton.jit(noinline=True)
def push_rows(launch, segment, listed, first, count):
    """Counts one event for each of `count` queued rows and pushes those that it was the last for.

    listed: address of the list in which the rows stand from place `first` on; 0 where they are
    rows first, first + 1, … themselves.
    """
    joins = counter_at(tl.load(segment + layout.JOINS))
    pending = counter_at(tl.load(segment + layout.PENDING))
    for begin in tl.range(0, count, LANES):
        place = begin + tl.arange(0, LANES)
        present = place < count
        row = first + place
        if listed != 0:
            row = tl.load(counter_at(listed) + row, mask=present, other=0)
        queued = row - setting(segment, layout.FIRST_QUEUED)
        join = joins + queued * layout.JOIN_WORDS
        events = tl.load(join + layout.JOIN_COUNT, mask=present, other=0)
        is_join = present & (events > 1)
        tl.debug_barrier()  # what brought this event about comes before the count
        arrived = tl.atomic_add(pending + queued, 1, mask=is_join, sem="acq_rel", scope="gpu") + 1
        complete = present & ((events <= 1) | (arrived == events))
        tl.store(pending + queued, 0, mask=complete & is_join)
        conditional = tl.load(join + layout.JOIN_CONDITIONAL, mask=complete, other=0)
        pushed = complete.to(tl.int32)
        number = tl.sum(pushed, axis=0)
        if number > 0:
            tl.atomic_add(counter_at(flag_at(launch, layout.OUTSTANDING)),
                          tl.sum(conditional, axis=0), sem="relaxed", scope="gpu")
            ticket = tl.atomic_add(counter_at(flag_at(launch, layout.TAIL)), number,
                                   sem="relaxed", scope="gpu")
            ticket += tl.cumsum(pushed, axis=0) - pushed
            word = ((ticket + 1).to(tl.int64) << 32) | row.to(tl.int64)
            slot = words(slot_of(launch, ticket))
            tl.debug_barrier()  # OUTSTANDING, and what any thread knows, come before the slots
            tl.atomic_xchg(slot, word, mask=complete, sem="release", scope="gpu")


@triton.jit
def push_roots(launch, segment):
    """Pushes what waits for nothing."""
    count = setting(segment, layout.NUM_ROOTS)
    push_rows(launch, segment, tl.load(segment + layout.ROOTS), count * 0, count)


@triton.jit
def argument_values(segment, word):
    """Pointers to the int32 tensors whose addresses stand at words of the argument table."""
    table = words(tl.load(segment + layout.ARGUMENT_TABLE))
    return tl.load(table + word).to(tl.pointer_type(tl.int32))


@triton.jit
def event_record(segment, event):
    return counter_at(tl.load(segment + layout.EVENT_RECORDS)) + event * layout.EVENT_WORDS


@triton.jit
def counter_of(segment, event):
    """Addresses of events' counters."""
    return tl.load(segment + layout.EVENTS) + event.to(tl.int64) * COUNTER_BYTES


@triton.jit
def target_of(segment, index, event, present):
    """What counters that are not cleared stand at when their events have fired in step `index`.

    Counters of events whose count is in a tensor are cleared by the task that writes it, before
    that task notifies anyone.
    """
    record = event_record(segment, event)
    count = tl.load(record + layout.EVENT_COUNT, mask=present, other=1)
    on_device = present & (count == 0)
    word = tl.load(record + layout.EVENT_COUNTS, mask=on_device, other=0)
    table = words(tl.load(segment + layout.ARGUMENT_TABLE))
    counts = tl.load(table + word, mask=on_device, other=0).to(tl.pointer_type(tl.int32))
    place = tl.load(record + layout.EVENT_COUNT_INDEX, mask=on_device, other=0)
    return tl.where(on_device, tl.load(counts + place, mask=on_device, other=0),
                    count * (index + 1))


@triton.jit
def push_waiting(launch, segment, event):
    """Pushes what waits for an event that has fired: single tasks, then tiles it releases."""
    record = event_record(segment, event)
    k = tl.load(record + layout.TRIGGER_BEGIN) - 1
    end = tl.load(record + layout.TRIGGER_END)
    listed = tl.load(segment + layout.CONSUMERS)
    first = tl.load(record + layout.CONSUMER_BEGIN)
    last = tl.load(record + layout.CONSUMER_END)
    while k < end:
        push_rows(launch, segment, listed, first, last - first)
        k += 1
        if k < end:
            trigger = (counter_at(tl.load(segment + layout.TRIGGERS))
                       + k * layout.TRIGGER_WORDS)
            indptr = argument_values(segment, tl.load(trigger + layout.TRIGGER_TENSOR))
            indptr += event - tl.load(trigger + layout.TRIGGER_EVENT)
            inner, row = (tl.load(trigger + layout.TRIGGER_INNER),
                          tl.load(trigger + layout.TRIGGER_ROW))
            listed = listed * 0
            first = row + tl.maximum(tl.load(indptr), 0) * inner
            last = row + tl.minimum(tl.load(indptr + 1),
                                    tl.load(trigger + layout.TRIGGER_TILES)) * inner


@triton.jit
def notify_lanes(launch, segment, index, event, present):
    """Counts a notify per lane; those that complete an event push who waits for it.

    event, present: [LANES].
    """
    lane = tl.arange(0, LANES)
    record = event_record(segment, event)
    resets = tl.load(record + layout.EVENT_RESETS, mask=present, other=0) != 0
    count = tl.load(record + layout.EVENT_COUNT, mask=present, other=0)
    target = tl.where(resets, count, target_of(segment, index, event, present))
    counter = counter_of(segment, event).to(tl.pointer_type(tl.int32))
    tl.debug_barrier()  # all threads' stores come before the lanes that release them
    seen = tl.atomic_add(counter, 1, mask=present, sem="acq_rel", scope="gpu") + 1
    fired = present & (seen == target)
    # nobody polls it, and nobody can notify it before the next step
    tl.store(counter, 0, mask=fired & resets)
    first = tl.min(tl.where(fired, lane, LANES), axis=0)
    while first < LANES:
        push_waiting(launch, segment, tl.sum(tl.where(lane == first, event, 0), axis=0))
        fired = fired & (lane != first)
        first = tl.min(tl.where(fired, lane, LANES), axis=0)
