"""No body reads or writes outside its tensors or its scratch, whatever numbers it meets.

Every tensor lies between pages that nobody may touch (guarded_memory.py), and a forked child calls
the bodies (bounds_cases.py): a fault there is a failure that names function, tensor and seed. GPU
bodies run in Triton's interpreter, whose loads and stores touch the same memory, lane by lane; it
has to be chosen before triton is imported, so they run in a program of their own:
`TRITON_INTERPRET=1 python tests/support/interpreted.py bounds DTYPE SIDE [CASE …]`.

Software prefetches of CPU bodies may name what lies beyond an end: they fault nowhere. The ring
brings whole weights by ranges that the host has made, of which test_ring.py shows that they are the
weights.
"""

import sys
from functools import partial

import numpy as np
import pytest
from cases import usual_or
from declared import declared

pytest.importorskip("numba")

import bounds_cases
from extreme_values import extreme
from guarded_memory import SIDES, Bracket, in_child, report_faults

from event_tensor.errors import DeadlockError, EventTensorError
from persistent_runtime import formats
from persistent_runtime.cpu.compile.registry import compile_body
from persistent_runtime.cpu.launch import CpuKernel
from persistent_runtime.cpu.single_tile import c_function
from persistent_runtime.cpu.vectors.emit import CONVERTS_FLOAT16
from persistent_runtime.functions import dense, experts
from persistent_runtime.launch import memory as buffers
from persistent_runtime.rows import layout
from persistent_runtime.rows.single_call import pack_arguments

DTYPES = [dtype for dtype in formats.DTYPES if dtype != "float16" or CONVERTS_FLOAT16]
CASES = {case.__name__: (case, functions) for case, functions in bounds_cases.CASES.items()}
SEEDS, INTERPRETED_SEEDS = usual_or(20, 60), usual_or(2, 4)


class Caller:
    """Runs calls on guarded memory, and knows how far it has come."""

    def __init__(self, side, dtype):
        self.side, self.dtype, self.seed = side, dtype, 0
        self.bracket, self.now = Bracket(side), "nothing yet"
        self.called = set()

    def __call__(self, declaration, values, counts, step=None):
        self.bracket = Bracket(self.side)
        self.called.add(declaration.name)
        placed = dict(values)
        for operand in declaration.operands:
            if values.get(operand.name) is not None:
                placed[operand.name] = self.bracket.place(operand.name, values[operand.name],
                                                          operand.writes)
        run = self.prepare(declaration, placed, step or {})
        for tile in np.ndindex(*counts):
            self.now = f"{declaration.name}[{', '.join(map(str, tile))}], {self.dtype}"
            run(tile)
        self.bracket.check_patterns()
        return {operand.name: placed[operand.name] for operand in declaration.operands
                if placed.get(operand.name) is not None}

    def describe(self, address):
        return f"{self.now}, seed {self.seed}: {self.bracket.describe(address)}"


class CpuCaller(Caller):
    def prepare(self, declaration, values, step):
        names = {name: values[name] for name in declaration.parameters
                 if isinstance(values.get(name), int)}
        floats = declaration.scratch_bytes.evaluate(names) // 4
        words = np.zeros(layout.STEP_WORDS, np.int64)
        words[list(step)] = list(step.values())
        place = self.bracket.place
        record = place("argument record", pack_arguments(declaration, values), is_written=False)
        coordinates = place("tile coordinates", np.zeros(layout.MAX_TILE_RANK, np.int32))
        words = place("step record", words, is_written=False)
        scratch = place("scratch", np.full(floats, np.nan, np.float32))
        addresses = [array.ctypes.data for array in (record, coordinates, words, scratch)]
        function = c_function(declaration, self.dtype)

        def run(tile):
            coordinates[:len(tile)] = tile
            function(*addresses)

        return run


class InterpretedCaller(Caller):
    def prepare(self, declaration, values, step):
        from persistent_runtime.gpu.single_tile import run_tile

        return lambda tile: run_tile(declaration, self.dtype, values, tile, step=step)


def run_case(name, caller, seeds, report):
    """What the child does."""
    case, functions = CASES[name]
    is_small = isinstance(caller, InterpretedCaller)
    report_faults(caller.describe, report)
    for seed in seeds:
        caller.seed = seed
        try:
            with np.errstate(all="ignore"):
                case(np.random.default_rng(seed), caller.dtype, caller, is_small)
        except Exception as error:
            error.add_note(f"{caller.now}, seed {seed}")
            raise
    assert caller.called == {function.name for function in functions}


def seeds_of(dtype, side, count):
    """Others for each."""
    first = count * (2 * formats.DTYPES.index(dtype) + SIDES.index(side))
    return range(first, first + count)


def test_every_device_function_is_called():
    called = [function for _, functions in CASES.values() for function in functions]
    assert set(called) == {*declared(dense), *declared(experts)}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_cpu_bodies_touch_their_tensors_only(case, dtype, side):
    for declaration in CASES[case][1]:
        compile_body(declaration, dtype)  # once, before children need it
    told = in_child(partial(run_case, case, CpuCaller(side, dtype), seeds_of(dtype, side, SEEDS)))
    if told:
        pytest.fail(told, pytrace=False)


def guard_kernels(bracket):
    """Every tensor, weight, schedule, counter and record of a kernel lies in the bracket from now
    on."""
    arrays_of, bind = CpuKernel.arrays_of, buffers.Buffers.bind

    def allocate(shape, dtype):
        storage = formats.format_of(dtype).storage
        return bracket.place(f"{dtype} {shape}", np.zeros(shape, storage))

    def bind_copy(self, tensor, memory):
        bind(self, tensor, bracket.place(tensor.name, memory))

    def copied_arrays(self, encoded):
        return {word: bracket.place(f"word {word} of a segment", array, is_written=False)
                for word, array in arrays_of(self, encoded).items()}

    buffers.allocate, buffers.Buffers.bind = allocate, bind_copy
    CpuKernel.arrays_of = copied_arrays


def decode_with_broken_routers(directory, schedule, side, report):
    """What the child does: short generations while the router's weights may be anything."""
    from frontend.compile import compile_decode_loop

    bracket, seed = Bracket(side), -1
    report_faults(lambda address: f"seed {seed}: {bracket.describe(address)}", report)
    guard_kernels(bracket)
    decoder = compile_decode_loop(directory, backend="cpu", schedule=schedule, workers=2,
                                  max_context=16)
    routers = [decoder._buffers.array(spec) for name, spec in decoder._operators.weights.items()
               if name.endswith("mlp.gate.weight")]
    assert routers
    for seed in range(usual_or(5, 12)):
        rng = np.random.default_rng(seed)
        for router in routers:
            router[...] = extreme(rng, *router.shape)
        try:
            decoder.generate([[5, 91, 17], [4]], max_new_tokens=3, ignore_eos=True)
        except DeadlockError:
            raise
        except EventTensorError:
            pass  # logits that are no numbers may be refused
        bracket.check_patterns()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("schedule", ["static", "dynamic", "hybrid"])
def test_edges_that_read_what_a_broken_router_chose_stay_in_their_tensors(schedule, side,
                                                                          tiny_model):
    """Queue, actions and counters included."""
    directory = tiny_model("qwen3_moe", num_hidden_layers=2)
    told = in_child(partial(decode_with_broken_routers, directory, schedule, side))
    if told:
        pytest.fail(told, pytrace=False)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gpu_bodies_touch_their_tensors_only(dtype, side, interpreted):
    pytest.importorskip("triton")
    print(interpreted("bounds", dtype, side))


def run_interpreted(dtype, side, *names):
    from persistent_runtime.gpu.interpret import patch_language_once

    patch_language_once()
    failed = False
    for name in names or CASES:
        told = in_child(partial(run_case, name, InterpretedCaller(side, dtype),
                                seeds_of(dtype, side, INTERPRETED_SEEDS)))
        print(name, told or "touches its tensors only")
        failed = failed or bool(told)
    sys.exit(failed)
