"""The GPU worker: one CTA that runs all its tasks of a launch. The twin of cpu/worker.py.

Counters are monotonic, with targets scaled by the step, and steps end in a barrier; cpu/worker.py
has the argument, sync.py the memory order. All threads of a CTA take the same way through this
file: what steers it is either constant during the launch or made uniform by sync.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from persistent_runtime import layout
from persistent_runtime.gpu.sync import (
    counter_at,
    globaltimer,
    notify_event,
    prefetch,
    ticks,
    wait_event,
)

INT32_BYTES, INT64_BYTES = tl.constexpr(4), tl.constexpr(8)
COUNTER_BYTES = tl.constexpr(layout.EVENT_STRIDE * 4)
REQUEST_BLOCK = tl.constexpr(128)


@triton.jit
def words(address):
    """int64 address → pointer to int64 words."""
    return address.to(tl.pointer_type(tl.int64))


@triton.jit
def setting(record, WORD: tl.constexpr):
    """A count in a record of int64 words, as an int32."""
    return tl.load(record + WORD).to(tl.int32)


@triton.jit
def flag_at(launch, FLAG: tl.constexpr):
    """Address of a word of the control block."""
    return tl.load(launch + layout.CONTROL) + FLAG * INT32_BYTES


@triton.jit
def record_stuck(launch, worker, segment, task, event, seen, target, epoch):
    """Leaves behind what this worker gave up waiting for; `check` of the host reads it."""
    stuck = words(tl.load(launch + layout.STUCK)) + worker * layout.STUCK_WORDS
    tl.store(stuck + layout.STUCK_SEGMENT, segment)
    tl.store(stuck + layout.STUCK_TASK, task)
    tl.store(stuck + layout.STUCK_EVENT, event)
    tl.store(stuck + layout.STUCK_SEEN, seen)
    tl.store(stuck + layout.STUCK_TARGET, target)
    tl.store(stuck + layout.STUCK_STEP, epoch)


@triton.jit
def requests_left(launch):
    """How many requests have not met their end; 1 for a launch that runs all its steps."""
    address = tl.load(launch + layout.FINISHED)
    left = tl.full((), 1, tl.int32)
    if address != 0:
        left = tl.full((), 0, tl.int32)
        for first in tl.range(0, tl.load(launch + layout.NUM_REQUESTS), REQUEST_BLOCK):
            request = first + tl.arange(0, REQUEST_BLOCK)
            present = request < tl.load(launch + layout.NUM_REQUESTS)
            finished = tl.load(counter_at(address) + request, mask=present, other=1, volatile=True)
            left += tl.sum((finished == 0).to(tl.int32), axis=0)
    return left


@triton.jit
def end_step(launch, worker, segment, epoch, THREADS: tl.constexpr, INTERPRETED: tl.constexpr):
    """Barrier after step number `epoch` of the launch; True while the launch goes on."""
    workers = setting(launch, layout.NUM_WORKERS)
    abort, stop = flag_at(launch, layout.ABORT), flag_at(launch, layout.STOP)
    opened = flag_at(launch, layout.EPOCH)
    tl.debug_barrier()  # this CTA's stores come before its arrival
    arrived = tl.atomic_add(counter_at(flag_at(launch, layout.ARRIVALS)), 1, sem="acq_rel",
                            scope="gpu")
    seen = epoch
    if arrived == epoch * workers - 1:
        # the last to arrive decides alone, and says so before it opens the barrier
        aborted = tl.atomic_add(counter_at(abort), 0, sem="relaxed", scope="gpu")
        if (requests_left(launch) == 0) | (aborted != 0):
            tl.store(counter_at(stop), 1)
        tl.debug_barrier()
        tl.atomic_xchg(counter_at(opened), epoch, sem="release", scope="gpu")
    else:
        seen = wait_event(opened, abort, epoch, tl.load(launch + layout.TIMEOUT_NS), THREADS,
                          INTERPRETED)
        if seen < epoch:
            record_stuck(launch, worker, segment, -1, 0, seen, epoch, epoch)
    tl.debug_barrier()
    return (seen >= epoch) & (tl.load(counter_at(stop), volatile=True) == 0)


@triton.jit
def wait_row(launch, worker, s, row, head, events, waits, index, epoch, THREADS: tl.constexpr,
             INTERPRETED: tl.constexpr):
    """Waits for all events of a row; False when the launch is aborted."""
    abort = flag_at(launch, layout.ABORT)
    timeout_ns = tl.load(launch + layout.TIMEOUT_NS)
    w = head[2]
    met = w >= 0
    while (w < head[3]) & met:
        wait = counter_at(waits) + w * layout.WAIT_WORDS
        event = tl.load(wait + layout.WAIT_EVENT).to(tl.int64)
        target = tl.load(wait + layout.WAIT_COUNT) * (index + 1)
        seen = wait_event(events + event * COUNTER_BYTES, abort, target, timeout_ns, THREADS,
                          INTERPRETED)
        met = seen >= target
        if seen < target:
            record_stuck(launch, worker, s, tl.load(row + layout.TASK), event, seen, target, epoch)
        w += 1
    return met


@triton.jit
def prefetch_row(segment, row, table, THREADS: tl.constexpr, PREFETCH: tl.constexpr,
                 INTERPRETED: tl.constexpr):
    """Asks for the weights that this row is to ask for (persistent_runtime/prefetch.py)."""
    if PREFETCH:
        pieces = counter_at(tl.load(segment + layout.PREFETCHES))
        k, end = tl.load(row + layout.PREFETCH_BEGIN), tl.load(row + layout.PREFETCH_END)
        while k < end:
            piece = pieces + k * layout.PREFETCH_WORDS
            tensor = tl.load(words(table) + tl.load(piece + layout.PREFETCH_TENSOR))
            first = tl.load(piece + layout.PREFETCH_OFFSET).to(tl.int64) * layout.PREFETCH_UNIT
            size = tl.load(piece + layout.PREFETCH_LENGTH) * layout.PREFETCH_UNIT
            prefetch(tensor + first, size, THREADS, INTERPRETED)
            k += 1


@triton.jit
def record_task(trace, task, worker, turned, ran, INTERPRETED: tl.constexpr):
    """Leaves a trace record. trace: address of the records of this step's tasks."""
    record = words(trace) + task.to(tl.int64) * layout.TRACE_WORDS
    tl.store(record + layout.TRACE_WORKER, worker + 1)
    tl.store(record + layout.TRACE_WAIT, turned)
    tl.store(record + layout.TRACE_RUN, ran)
    tl.store(record + layout.TRACE_END, ticks(INTERPRETED))
    tl.store(record + layout.TRACE_END_NS, globaltimer(INTERPRETED))


@triton.jit
def trace_of_step(segment, index):
    """Address of the trace records of this step; 0 where it is not traced."""
    trace = tl.load(segment + layout.TRACE)
    step_words = tl.load(segment + layout.NUM_TASKS) * layout.TRACE_WORDS
    traced = index < tl.load(segment + layout.TRACE_STEPS)
    return tl.where(traced, trace + step_words * 8 * index, 0)


@triton.jit
def load_head(rows, k, end):
    """The words of row k that decide what comes first; zeros beyond the end."""
    row = rows + k * layout.ROW_WORDS
    there = k < end
    return (tl.load(row + layout.KIND, mask=there, other=0),
            tl.load(row + layout.ARGUMENTS, mask=there, other=0),
            tl.load(row + layout.WAIT_BEGIN, mask=there, other=0),
            tl.load(row + layout.WAIT_END, mask=there, other=0))


@triton.jit
def call_body(arguments, tile, step, KIND: tl.constexpr, FUNCTIONS: tl.constexpr,
              CONFIGURATIONS: tl.constexpr):
    # a variable, because Triton 3.6 does not take the tuple's element for a constant
    CONFIG: tl.constexpr = CONFIGURATIONS[KIND]
    FUNCTIONS[KIND](arguments, tile, step, CONFIG)


@triton.jit
def run_task(table, head, tile, step, FUNCTIONS: tl.constexpr, CONFIGURATIONS: tl.constexpr):
    """Dispatches on the device function: one branch per kind, never per call or tile."""
    arguments = words(table) + head[1]
    for kind in tl.static_range(len(FUNCTIONS)):
        if head[0] == kind:
            call_body(arguments, tile, step, kind, FUNCTIONS, CONFIGURATIONS)


@triton.jit
def run_step(launch, worker, s, segment, index, epoch, step, FUNCTIONS: tl.constexpr,
             CONFIGURATIONS: tl.constexpr, THREADS: tl.constexpr, PREFETCH: tl.constexpr,
             INTERPRETED: tl.constexpr):
    """All of this worker's tasks of one step; False when the launch is aborted."""
    events, waits = tl.load(segment + layout.EVENTS), tl.load(segment + layout.WAITS)
    notifies, table = tl.load(segment + layout.NOTIFIES), tl.load(segment + layout.ARGUMENT_TABLE)
    rows = counter_at(tl.load(segment + layout.ROWS))
    row_begin = words(tl.load(segment + layout.ROW_BEGIN))
    k = tl.load(row_begin + worker).to(tl.int32)
    end = tl.load(row_begin + worker + 1).to(tl.int32)
    head = load_head(rows, k, end)
    trace = trace_of_step(segment, index)
    alive = k >= 0
    while (k < end) & alive:
        row = rows + k * layout.ROW_WORDS
        tile = (tl.load(row + layout.TILE), tl.load(row + (layout.TILE + 1)),
                tl.load(row + (layout.TILE + 2)), tl.load(row + (layout.TILE + 3)))
        n, notify_end = tl.load(row + layout.NOTIFY_BEGIN), tl.load(row + layout.NOTIFY_END)
        prefetch_row(segment, row, table, THREADS, PREFETCH, INTERPRETED)
        turned = tl.full((), 0, tl.int64)
        ran = turned
        if trace != 0:
            turned = ticks(INTERPRETED)
        alive = wait_row(launch, worker, s, row, head, events, waits, index, epoch, THREADS,
                         INTERPRETED)
        if trace != 0:
            ran = ticks(INTERPRETED)
        following = load_head(rows, k + 1, end)  # arrives while this row's tile runs
        if alive:
            run_task(table, head, tile, step, FUNCTIONS, CONFIGURATIONS)
            while n < notify_end:
                event = tl.load(counter_at(notifies) + n).to(tl.int64)
                notify_event(events + event * COUNTER_BYTES)
                n += 1
            if trace != 0:
                record_task(trace, tl.load(row + layout.TASK), worker, turned, ran, INTERPRETED)
        head = following
        k += 1
    return alive


@triton.jit
def run_worker(launch, first_worker, FUNCTIONS: tl.constexpr, CONFIGURATIONS: tl.constexpr,
               FINGERPRINT: tl.constexpr, THREADS: tl.constexpr, PREFETCH: tl.constexpr,
               INTERPRETED: tl.constexpr):
    """Everything one worker does in a launch.

    launch: pointer to the launch record (int64). FUNCTIONS: a body per kind, each called as
    `body(arguments, tile, step, configuration)`. FINGERPRINT stands for their sources, which the
    compiler's cache does not see through a tuple. THREADS: 32 * num_warps. PREFETCH: whether the
    device can be asked for weights ahead of time.
    """
    worker = tl.program_id(0) + first_worker
    epoch = worker * 0
    s = worker * 0
    alive = worker >= 0
    while (s < setting(launch, layout.NUM_SEGMENTS)) & alive:
        segment = words(tl.load(launch + layout.SEGMENTS)) + s * layout.SEGMENT_WORDS
        index = worker * 0
        while (index < setting(segment, layout.STEPS)) & alive:
            epoch += 1
            step = (index,
                    setting(segment, layout.FIRST_ROW)
                    + index * setting(segment, layout.ROW_STRIDE),
                    setting(segment, layout.FIRST_LOGIT)
                    + index * setting(segment, layout.LOGIT_STRIDE),
                    setting(segment, layout.SEGMENT_ADVANCE))
            alive = run_step(launch, worker, s, segment, index, epoch, step, FUNCTIONS,
                             CONFIGURATIONS, THREADS, PREFETCH, INTERPRETED)
            if alive:
                alive = end_step(launch, worker, s, epoch, THREADS, INTERPRETED)
            index += 1
        s += 1
