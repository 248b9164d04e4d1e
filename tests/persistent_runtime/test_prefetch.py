"""What a worker asks for ahead of time: every byte of its weights once a step, and no other."""

import random

import numpy as np
import pytest

from persistent_runtime.function_table import FunctionTable
from persistent_runtime.megakernel import build_schedule
from persistent_runtime.rows import layout
from persistent_runtime.rows.encode import ArgumentEncoder, encode_schedule
from persistent_runtime.rows.prefetch import ask_ahead
from scheduling.target import H200


def bytes_of(pieces):
    """(tensor, 16-byte unit) of every piece, in order."""
    return [(tensor, unit) for tensor, first, length in pieces
            for unit in range(first // 16, (first + length) // 16)]


@pytest.mark.parametrize("seed", range(60))
def test_the_stream_is_asked_for_once_in_order_and_ahead(seed):
    rng = random.Random(seed)
    pieces = [[(rng.randrange(9), 16 * rng.randrange(9), 16 * rng.randrange(1, 9))
               for _ in range(rng.choice([0, 0, 1, 2]))] for _ in range(rng.randrange(1, 12))]
    ahead = 16 * rng.randrange(40)
    asked = [bytes_of(row) for row in ask_ahead(pieces, ahead)]
    stream = [bytes_of(row) for row in pieces]
    whole = sum(stream, [])
    start = min(ahead // 16, len(whole))  # the step before asked for these
    assert sum(asked, []) == whole[start:] + whole[:start]
    done, read = start, 0
    for own, row in zip(stream, asked, strict=True):
        done += len(row)
        read += len(own)
        assert done == read + start  # what the row reads, and as much again as is to be ahead


def test_pieces_lie_inside_the_weights_and_cover_them(tiny_model):
    from event_tensor.derive import derive_events
    from frontend.config.decoder_config import read_config
    from frontend.families.decoder import build_step
    from frontend.graph.operators import Limits, Operators
    from frontend.graph.tiles import choose_tiles

    config = read_config(tiny_model("qwen2", seed=1))
    target = H200.with_workers(5)
    operators = Operators(config, choose_tiles(config, target, "bfloat16"), Limits(1, 64, 65, 1),
                          "bfloat16").for_decoding()
    build_step(operators)
    graph = derive_events(operators.graph)
    arguments = ArgumentEncoder(graph)
    schedule = build_schedule(graph, {"tokens": 1, "logit_rows": 1, "context": 8, "kv_splits": 1},
                              "critical_path", target)
    encoded = encode_schedule(schedule, FunctionTable.of(graph), arguments,
                              prefetch_bytes=2048)
    at = {}  # position in the argument table → the tensor whose address stands there
    for call in graph.calls:
        for k, tensor in enumerate(call.args):
            at[int(arguments.begin[call.index]) + k * layout.OPERAND_WORDS] = tensor
    asked = {}
    for position, offset, length, _ in encoded.prefetches.tolist():
        counts = asked.setdefault(at[position], np.zeros(2**16, int))
        counts[offset:offset + length] += 1
    matrices = [w for w in operators.weights.values() if len(w.shape) == 2]
    assert set(asked) <= set(matrices)
    assert len(asked) >= len(matrices) - 1  # an embedding that is not the head is read by rows
    for tensor, counts in asked.items():
        units = int(np.prod([d.evaluate({}) for d in tensor.shape])) * 2 // layout.PREFETCH_UNIT
        assert (counts[:units] == 1).all() and not counts[units:].any(), tensor


def test_no_prefetch_unless_the_target_asks_for_it():
    assert ask_ahead([[], []], 0) == [[], []]
