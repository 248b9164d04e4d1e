"""The binary interface between the host and both workers: every offset has its one home here.

A *task row* is `ROW_WORDS` int32 words. Waits and notifies are ranges in two side lists, because
their number varies: a wait is (event, count) and a notify is an event index. What goes beyond that
is an *action*: an edge that reads a tensor, or a notify that may push tasks to the ready queue.
The rows of queued tasks stand behind those of all workers.

An *argument record* is the int64 words one graph call hands to its device function: for every
operand an address and its dimensions, then the call's parameters (a float as its float64 bits).

A *step record* is the int64 words that change from one step of a launch to the next.

A *launch* is a list of *segments*; a segment repeats one schedule for a number of steps.
"""

from event_tensor.device_function import DeviceFunction

# Task row, int32 words.
KIND = 0  # index of the device function in the kernel's function table, + ACTS if it has actions
ARGUMENTS = 1  # offset of the call's argument record in the argument table, in words
TILE = 2  # first of MAX_TILE_RANK tile coordinates
WAIT_BEGIN = 6  # range in the wait list
WAIT_END = 7
NOTIFY_BEGIN = 8  # range in the notify list
NOTIFY_END = 9
TASK = 10  # index in the task table, for traces and error messages
STREAM_FIRST = 11  # of a row whose weights go through the ring: its first piece among its worker's
STREAM_COUNT = 12  # and how many it has; 0 for others
ACTION_BEGIN = 13  # range in the action list
ACTION_END = 14
CALL = 15  # index of the call
ROW_WORDS = 16  # one cache line
ACTS = 1 << 16
MAX_TILE_RANK = 4

# Wait list, int32 words per wait.
WAIT_EVENT = 0
WAIT_COUNT = 1
WAIT_WORDS = 2

# Stream list, int32 words per piece of a weight (gpu/ring/pieces.py).
STREAM_TENSOR = 0  # where the argument table has the tensor's address, in words
STREAM_PLACE = 1  # first byte * STREAM_LENGTHS + length, both in units of STREAM_UNIT
STREAM_WORDS = 2
STREAM_UNIT = 512  # bytes
STREAM_LENGTHS = 64

# Action, int32 words. Kinds below AFTER_TASK come before the task, the others after it.
ACTION = 0  # kind
ACTION_EVENT = 1  # an event, or the one that value 0 of the tensor stands for
ACTION_TENSOR = 2  # word of the argument table with the address of an int32 tensor
ACTION_FIRST = 3  # its first element for this task, and how many there are
ACTION_LENGTH = 4
ACTION_STRIDE = 5  # from the event of value v to that of v + 1
ACTION_EXTENT = 6  # values outside 0 … ACTION_EXTENT - 1 mean no event
ACTION_WORDS = 8
DISPATCH = 0  # count this task as dispatched for ACTION_EVENT
AWAIT = 1  # wait for ACTION_EVENT
AWAIT_READ = 2  # wait for the events that the tensor's elements name
AWAIT_RELEASE = 3  # find in the CSR tensor the event that releases this tile and wait for it
CLEAR = 4  # set ACTION_LENGTH counters from ACTION_EVENT on to zero
NOTIFY = 5  # notify ACTION_EVENT
NOTIFY_READ = 6  # notify the events that the tensor's elements name
AFTER_TASK = CLEAR

# Event record, int32 words: what a notify that may push and a data-dependent wait must know.
EVENT_COUNT = 0  # notifies per step; 0 where a tensor holds the count
EVENT_COUNTS = 1  # word of the argument table with that tensor's address, and its element
EVENT_COUNT_INDEX = 2
EVENT_RESETS = 3  # 1 where only queued tasks wait: the last notify of a step clears the counter
CONSUMER_BEGIN = 4  # range in the list of rows of queued tasks that wait for the event
CONSUMER_END = 5
TRIGGER_BEGIN = 6  # range in the trigger list
TRIGGER_END = 7
EVENT_WORDS = 8

# Trigger, int32 words: event e releases tiles indptr[e] … indptr[e + 1] of a call.
TRIGGER_TENSOR = 0  # word of the argument table with the address of indptr
TRIGGER_EVENT = 1  # event 0 of the event tensor
TRIGGER_ROW = 2  # row of the call's first task
TRIGGER_INNER = 3  # tasks per tile of the leading axis
TRIGGER_TILES = 4  # tiles along the leading axis
TRIGGER_WORDS = 8

# Ready queue: int64 slots, (ticket + 1) << 32 | row. A ticket is an int32 that may wrap.

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
TICKET = 4  # the GPU worker's own: its ticket for the ready queue, held from step to step
STEP_WORDS = 8

# Segment record, int64 words; word 12 is spare.
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
TRACE = 13  # address of [TRACE_STEPS, NUM_TASKS] trace records, and how many steps are traced
TRACE_STEPS = 14
NUM_TASKS = 15
ACTIONS = 16  # addresses of the action list, the event records, the consumer rows, the triggers
EVENT_RECORDS = 17
CONSUMERS = 18
TRIGGERS = 19
JOINS = 20  # address of [queued, JOIN_WORDS] int32
PENDING = 21  # address of [queued] int32, zero at the start: how many of them have fired
ROOTS = 22  # address of [NUM_ROOTS] int32: queued rows that wait for nothing
NUM_ROOTS = 23
FIRST_QUEUED = 24  # row of the first queued task
LEFT_OVER = 25  # address of [NUM_LEFT_OVER] int32: queued tasks whose PENDING may be left over
NUM_LEFT_OVER = 26
TASK_COUNTS = 27  # address of [workers, NUM_CALLS, TASK_COUNT_WORDS] int32
NUM_CALLS = 28
NUM_DUE = 29  # queued tasks that run in every step
STREAM = 30  # address of the stream list, one worker after the other
STREAM_BEGIN = 31  # address of [workers + 1] int64: where each worker's pieces begin
SEGMENT_WORDS = 32

# Join, int32 words per queued task.
JOIN_COUNT = 0  # events that it waits for
JOIN_CONDITIONAL = 1  # 1 where some step may not release it
JOIN_WORDS = 2

# Task counts, int32 words per worker and call.
POPPED = 0  # queued tasks that ran
SKIPPED = 1  # rows whose tile no event releases
TASK_COUNT_WORDS = 2

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
SPIN_LIMIT = 11  # polls, at least one, before a waiting worker gives its core away
STEP_RECORDS = 12  # address of [workers, STEP_WORDS] int64
BERTHS = 13  # address of [workers, BERTH_WORDS] int64, zero at the start: where workers sleep,
SLEEP_NS = 14  # and for how long at most
QUEUE = 15  # address of QUEUE_CAPACITY slots
QUEUE_CAPACITY = 16  # a power of two; 0 where nothing is queued
LAUNCH_WORDS = 24

# Control block, int32 words, each on a cache line of its own.
ABORT = 0 * EVENT_STRIDE  # 0, or why every worker must leave
EPOCH = 1 * EVENT_STRIDE  # steps that all workers have finished
STOP = 2 * EVENT_STRIDE  # set before EPOCH moves: no request is left to serve
HEAD = 3 * EVENT_STRIDE  # tasks popped; on a GPU, tickets taken
TAIL = 4 * EVENT_STRIDE  # tasks pushed
OUTSTANDING = 5 * EVENT_STRIDE  # workers still in this step's rows + tasks due or released
SLEEPERS = 6 * EVENT_STRIDE  # workers that sleep or are about to
CONTROL_WORDS = 7 * EVENT_STRIDE
# Behind the control block the GPU has a cache line per worker: its ticket, int64 words.
SLOT = 0  # address of the ticket's slot; 0 where nothing is queued
SLOT_NUMBER = 1  # ticket + 1, what the slot's upper half holds when it is filled
# A waiter reads the clock again and again, and of the time between two looks it counts at most this
# part of TIMEOUT_NS: when all were stopped, or the machine slept, nobody has waited. A deadlock
# still ends after at most so many looks that are far apart, beside the timeout itself.
GAPS_PER_TIMEOUT = 16
ABORT_TIMEOUT = 1
ABORT_REQUESTED = 2

# Berth, int64 words: a worker that sleeps, and what wakes it. One cache line.
BERTH_ASLEEP = 0  # 1 while it may sleep; its lower half is what the system call looks at
BERTH_COUNTER = 1  # address of the counter it waits for, and the count
BERTH_TARGET = 2
BERTH_POPS = 3  # 1 where a task in the ready queue ends its sleep, too
BERTH_TASKS = 4  # queued tasks that it has run,
BERTH_LOOKED = 5  # when it last looked at the clock between two of them,
BERTH_TURN = 6  # and since when it has had its core
BERTH_WORDS = 8

# Sampling record, float32 words per request; frontend/config/sampling.py says what is allowed.
TEMPERATURE = 0  # 0: the most likely token
TOP_K = 1  # 0: all
TOP_P = 2  # 1: all
MIN_P = 3  # 0: all
REPETITION_PENALTY = 4  # 1: none
LOGPROBS = 5  # 1: the log-probability of each chosen token is wanted, else 0
SAMPLING_WORDS = 8

# Logit bias, int32 words: added to the score of BIAS_TOKEN where the tokens before are those of the
# prefix and the position is below a limit. The biases of a request are a range of the list: lone
# ones have no prefix and a token of their own, those of one token follow each other.
BIAS_TOKEN = 0
BIAS_VALUE = 1  # float32 bits
BIAS_LIMIT = 2  # word of the request's record that holds the position from which on it is none
BIAS_PREFIX = 3  # range in the list of prefix tokens
BIAS_PREFIX_END = 4
BIAS_WORDS = 8
MAX_BIASES = 2**15
MAX_PREFIX_TOKENS = 2**15

# Processors record, int32 words per request: what is done to its logits before one is drawn.
BIAS_BEGIN = 0  # range in the list of biases: lone ones, then the others
BIAS_SHARED = 1
BIAS_END = 2
NO_LIMIT = 3  # limits of biases, positions: never reached,
FIRST_LIMIT = 4  # after the first new token,
MINIMUM_LIMIT = 5  # from which on the request may end
NO_REPEAT_NGRAM = 6  # no run of so many tokens occurs twice; 0 for no such rule
PROCESSORS_WORDS = 8

# What `finished` says of a request, and the workers never of one that goes on.
RUNNING = 0
ENDED = 1
NOT_FINITE = 2  # a logit was NaN or infinite, so there is no token

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
