"""The binary interface between the host and both workers: every offset has its one home here.

A *task row* is `ROW_WORDS` int32 words. Waits and notifies are ranges in two side lists, because
their number varies: a wait is (event, count) and a notify is an event index.

An *argument record* is the int64 words one graph call hands to its device function: for every
operand an address and its dimensions, then the call's parameters (a float as its float64 bits).

A *step record* is the int64 words that change from one step of a launch to the next.

A *launch* is a list of *segments*; a segment repeats one schedule for a number of steps.
"""

from event_tensor.device_function import DeviceFunction

# Task row, int32 words.
KIND = 0  # index of the device function in the kernel's function table
ARGUMENTS = 1  # offset of the call's argument record in the argument table, in words
TILE = 2  # first of MAX_TILE_RANK tile coordinates
WAIT_BEGIN = 6  # range in the wait list
WAIT_END = 7
NOTIFY_BEGIN = 8  # range in the notify list
NOTIFY_END = 9
TASK = 10  # index in the task table, for traces and error messages
PREFETCH_BEGIN = 11  # range in the prefetch list
PREFETCH_END = 12
ROW_WORDS = 16  # one cache line
MAX_TILE_RANK = 4

# Wait list, int32 words per wait.
WAIT_EVENT = 0
WAIT_COUNT = 1
WAIT_WORDS = 2

# Prefetch list, int32 words per piece of a weight: a row asks for its pieces before it waits.
PREFETCH_TENSOR = 0  # where the argument table has the tensor's address, in words
PREFETCH_OFFSET = 1  # of the piece's first byte, in units of PREFETCH_UNIT
PREFETCH_LENGTH = 2
PREFETCH_WORDS = 4
PREFETCH_UNIT = 16  # bytes

# Event counters, int32; one cache line each, because neighbours would share it between workers.
EVENT_STRIDE = 16

# Argument record, int64 words per operand; parameters follow the last operand.
ADDRESS = 0  # 0 where an optional operand is absent
DIMS = 1
MAX_RANK = 4
OPERAND_WORDS = 1 + MAX_RANK

# Step record, int64 words.
STEP_INDEX = 0  # steps finished in this segment, from 0
ROW_BASE = 1  # first entry of row_request and row_position that this step reads
LOGIT_BASE = 2  # first entry of logit_row that this step reads
ROW_ADVANCE = 3  # how far select_token moves row_position of the row it answers: 1 in decode
STEP_WORDS = 8

# Segment record, int64 words.
STEPS = 0  # how often the schedule runs, at most
FIRST_ROW = 1  # ROW_BASE of the first step, and how far it moves per step
ROW_STRIDE = 2
FIRST_LOGIT = 3
LOGIT_STRIDE = 4
SEGMENT_ADVANCE = 5  # ROW_ADVANCE of every step
ROWS = 6  # address of the task rows of all workers, one worker after the other
ROW_BEGIN = 7  # address of [workers + 1] int64: where each worker's rows begin
WAITS = 8  # addresses of the wait list, the notify list and the argument table
NOTIFIES = 9
ARGUMENT_TABLE = 10
EVENTS = 11  # address of this segment's event counters, zero at the start of the launch
PREFETCHES = 12  # address of the prefetch list
TRACE = 13  # address of [TRACE_STEPS, NUM_TASKS] trace records, and how many steps are traced
TRACE_STEPS = 14
NUM_TASKS = 15
SEGMENT_WORDS = 16

# Trace record, int64 words per task: who ran it, and when, in ticks of that worker's clock.
TRACE_WORKER = 0  # worker + 1, so that 0 means the task did not run
TRACE_WAIT = 1  # the worker turned to the task
TRACE_RUN = 2  # its events had fired
TRACE_END = 3  # it had notified
TRACE_END_NS = 4  # TRACE_END again, in the nanoseconds of the clock that all workers share
TRACE_WORDS = 8

# Launch record, int64 words.
NUM_WORKERS = 0
NUM_SEGMENTS = 1
SEGMENTS = 2  # addresses
FUNCTIONS = 3
CONTROL = 4
STUCK = 5
SCRATCH = 6
SCRATCH_BYTES = 7  # per worker
FINISHED = 8  # address of [requests] int32; 0 where the launch never ends early
NUM_REQUESTS = 9
TIMEOUT_NS = 10
SPIN_LIMIT = 11  # polls before a waiting worker starts to yield its core
STEP_RECORDS = 12  # address of [workers, STEP_WORDS] int64
LAUNCH_WORDS = 16

# Control block, int32 words, each on a cache line of its own.
ABORT = 0 * EVENT_STRIDE  # 0, or why every worker must leave
ARRIVALS = 1 * EVENT_STRIDE  # workers that have finished a step, summed over all steps
EPOCH = 2 * EVENT_STRIDE  # steps that all workers have finished
STOP = 3 * EVENT_STRIDE  # set before EPOCH moves: no request is left to serve
CONTROL_WORDS = 4 * EVENT_STRIDE
ABORT_TIMEOUT = 1
ABORT_REQUESTED = 2

# Sampling record, float32 words per request; frontend/sampling.py says what is allowed.
TEMPERATURE = 0  # 0: the most likely token
TOP_K = 1  # 0: all
TOP_P = 2  # 1: all
MIN_P = 3  # 0: all
REPETITION_PENALTY = 4  # 1: none
LOGPROBS = 5  # 1: the log-probability of each chosen token is wanted, else 0
SAMPLING_WORDS = 8

# Stuck record, int64 words per worker: what it waits for, kept for error messages.
STUCK_SEGMENT = 0
STUCK_TASK = 1  # -1 at the end of a step, where workers wait for each other
STUCK_EVENT = 2
STUCK_SEEN = 3
STUCK_TARGET = 4  # 0 where the worker did not give up waiting
STUCK_STEP = 5
STUCK_WORDS = 8


def argument_offsets(function: DeviceFunction) -> dict[str, int]:
    """Where each operand's address and each parameter stand in the argument record, in words."""
    offsets = {operand.name: k * OPERAND_WORDS for k, operand in enumerate(function.operands)}
    first = len(function.operands) * OPERAND_WORDS
    return offsets | {name: first + k for k, name in enumerate(function.parameters)}
