"""The ring's inline PTX in Python, so that Triton's interpreter runs all the rest of its source.

A program of interpreted.py. Prints one JSON object: tokens of the interpreted worker with the ring
and without it, how many pieces were read, and whether any call that could go through the ring did
not.
"""

from __future__ import annotations

import ctypes
import json

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import TensorHandle

from persistent_runtime.gpu.ring import pieces as streams
from persistent_runtime.gpu.ring import ring, streamed
from persistent_runtime.rows import layout

THREADS, WARPS = 256, 8
GARBAGE = 0xFF  # what a slot holds beyond its piece: NaN, in pairs of two-byte floats


def scalar(value):
    return int(np.asarray(value.handle.data).item()) if isinstance(value, tl.tensor) else int(value)


def vector(values, dtype):
    array = np.ascontiguousarray(values)
    return tl.tensor(TensorHandle(array, dtype), tl.block_type(dtype, list(array.shape)))


def read(address, size):
    return np.frombuffer(ctypes.string_at(int(address), int(size)), np.uint8)


class Ring:
    """One worker's shared memory, with the checks that the barriers make impossible to fail."""

    def __init__(self) -> None:
        self.slots = {}  # slot → (piece number, bytes)
        self.asked = self.taken = 0
        self.released = set()
        self.sums = np.full(streams.SUMS, np.nan, np.float32)
        self.squares = np.full(WARPS, np.nan, np.float32)

    def make_barriers(self, end):
        assert not self.slots

    def await_copies(self, end, pieces):
        assert self.asked == self.taken + scalar(pieces)  # as far ahead as there are slots
        self.__init__()

    def ring_end(self):
        return tl.tensor(TensorHandle(np.array([0], np.int32), tl.int32), tl.int32)

    def ask(self, end, number, address, size, pieces):
        number, pieces = scalar(number), scalar(pieces)
        assert number == self.asked
        assert number < pieces or number - pieces in self.released
        assert 0 < scalar(size) <= streams.PIECE_BYTES and scalar(size) % 16 == 0
        memory = np.full(streams.PIECE_BYTES, GARBAGE, np.uint8)
        memory[:scalar(size)] = read(scalar(address), scalar(size))
        self.slots[number % pieces] = number, memory
        self.asked += 1

    def take(self, end, number, pieces):
        number = scalar(number)
        held, memory = self.slots[number % scalar(pieces)]
        assert held == number == self.taken
        self.taken += 1
        words = memory.view(np.int32).reshape(streams.PIECE_LINES, THREADS, 4)
        return tuple(vector(words[line, :, k], tl.int32) for line in range(streams.PIECE_LINES)
                     for k in range(4))

    def release(self, end, number, pieces):
        assert scalar(number) < self.taken and scalar(number) not in self.released
        self.released.add(scalar(number))

    def leave(self, totals, end, first, count):
        first, count = scalar(first), scalar(count)
        sums = [t.handle.data.reshape(WARPS, -1).sum(axis=1, dtype=np.float32) for t in totals]
        assert len(sums) == count
        if count == 3:
            sums.append(np.zeros(WARPS, np.float32))
        for v, of_warps in enumerate(sums):
            self.sums[first + v * WARPS:first + (v + 1) * WARPS] = of_warps

    def leave_squares(self, squares, end):
        self.squares[:] = squares.handle.data.reshape(WARPS, -1).sum(axis=1, dtype=np.float32)

    def add_up(self, address, count):
        at = address.handle.data
        if at[0] == -ring.SQUARES:
            total = np.full(THREADS, self.squares.sum(dtype=np.float32), np.float32)
        else:
            first = (at + ring.SUMS_AT) // 4
            total = sum(self.sums[first + k] for k in range(scalar(count)))
        return vector(total.astype(np.float32), tl.float32)


def load_floats(address):
    rows = np.stack([read(a, 32).view(np.float32) for a in address.handle.data])
    return tuple(vector(rows[:, k], tl.float32) for k in range(8))


def load_pairs(address):
    rows = np.stack([read(a, 16).view(np.int32) for a in address.handle.data])
    return tuple(vector(rows[:, k], tl.int32) for k in range(4))


def emulate():
    """Puts this in the place of the PTX, in this process and those that it forks."""
    memory = Ring()
    for module in (ring, streamed):
        for name in vars(Ring):
            if not name.startswith("_") and hasattr(module, name):
                setattr(module, name, getattr(memory, name))
    from persistent_runtime.gpu.bodies import linear

    assert not hasattr(linear, "take")
    streamed.load_floats, streamed.load_pairs = load_floats, load_pairs


def main(directory):
    from frontend import compile as frontend_compile
    from persistent_runtime.gpu.interpret import InterpretedBackend

    emulate()
    outputs, streamed_pieces = [], 0
    for pieces in (0, 4):
        backend = InterpretedBackend()
        backend.ring_pieces = pieces
        frontend_compile.find_backend = lambda name, backend=backend: backend
        decoder = frontend_compile.compile_decode_loop(directory, max_context=96, workers=3)
        result = decoder.generate([5, 91, 17], max_new_tokens=3, ignore_eos=True)
        outputs.append(result.output_ids)
        encoded = decoder.kernel.schedule(decoder.bindings(1, 1, 1))
        streamed_pieces = len(encoded.of_backend.get(layout.STREAM, ()))
    calls = encoded.schedule.table.graph.calls
    left_out = [call.name for call in calls if call.function.name in streams.MATRICES
                and call.index not in decoder.kernel.kernel.streamed_calls(
                    decoder.graph, decoder.bindings(1, 1, 1))]
    print(json.dumps({"without": outputs[0], "with": outputs[1], "pieces": streamed_pieces,
                      "left_out": left_out}))
