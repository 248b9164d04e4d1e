"""Weights through the ring without a GPU: what is streamed, the source interpreted, the kernel
compiled. tests/persistent_runtime/gpu/test_ring_device.py runs it."""

import json
import re
from itertools import product

import numpy as np
import pytest

pytest.importorskip("triton")

from cases import sampled
from ptx_lanes import run

from benchmarks.gpu.compile import compile_shape, decoder_graph, ring
from event_tensor.derive import derive_events
from persistent_runtime.function_table import FunctionTable
from persistent_runtime.gpu.compile.compile_only import SHARED_MEMORY_LIMIT, compile_worker
from persistent_runtime.gpu.compile.registry import configurations
from persistent_runtime.gpu.ring import pieces as streams
from persistent_runtime.gpu.ring.pieces import (
    MATRICES,
    PIECE_BYTES,
    can_stream,
    period_of,
    streamed_calls,
    with_streams,
)
from persistent_runtime.gpu.ring.streamed import leave_sums
from persistent_runtime.gpu.target import tile_target_of
from persistent_runtime.rows import layout
from persistent_runtime.rows.encode import ArgumentEncoder, encode_schedule
from scheduling.pipeline import build_schedule
from scheduling.target import H200

PIECES = 9
BINDINGS = {"tokens": 1, "logit_rows": 1, "context": 128, "kv_splits": 2}


@pytest.fixture
def with_ring():
    with ring(PIECES):
        yield


@pytest.mark.parametrize("in_features", [256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192,
                                         12288, 14336])
def test_rows_end_where_periods_and_warps_say(in_features):
    period = period_of(in_features)
    row_bytes = in_features * streams.ELEMENT_BYTES
    assert period.lines * streams.LINE_BYTES == period.rows * row_bytes
    used_up = sum(period.piece_lines)
    assert used_up % period.lines == 0 and used_up <= 2 * streams.PIECE_LINES
    # the sums that a thread per row adds up are those of the warps that read the row
    in_lines = period.lines_per_sum * streams.LINE_BYTES
    assert period.sums_per_row == streams.WARPS * row_bytes // in_lines
    assert period.sums_per_round * period.lines_per_sum == used_up
    assert period.rounds(1) == 1


@pytest.mark.parametrize("shape", ["qwen3-0.6b", "llama-3.2-1b", "qwen3-8b"])
def test_a_step_streams_every_weight_once_in_the_order_of_use(shape):
    graph = derive_events(decoder_graph(shape, "bfloat16", 132))
    products = [call for call in graph.calls if call.function.name in MATRICES]
    calls = streamed_calls(products, BINDINGS)
    assert {graph.calls[k].function.name for k in calls} == set(MATRICES)
    assert all(can_stream([graph.calls[k]]) for k in calls)
    assert not streamed_calls(products, BINDINGS | {"tokens": 2, "logit_rows": 2})
    schedule = build_schedule(graph, BINDINGS, "static", H200)
    arguments = ArgumentEncoder(graph)
    encoded = with_streams(encode_schedule(schedule, FunctionTable.of(graph.calls), arguments),
                           arguments, calls)
    stream, stream_begin = (encoded.of_backend[word] for word
                            in (layout.STREAM, layout.STREAM_BEGIN))
    covered = {}
    for worker, order in enumerate(schedule.orders):
        begin, end = stream_begin[worker:worker + 2]
        at = 0
        for row in encoded.rows[encoded.row_begin[worker]:encoded.row_begin[worker + 1]]:
            if row[layout.CALL] not in calls:
                continue
            assert row[layout.STREAM_FIRST] == at and row[layout.STREAM_COUNT] > 0
            at += row[layout.STREAM_COUNT]
        assert at == end - begin and len(order)
    for word, place in stream.tolist():
        first, size = divmod(place, layout.STREAM_LENGTHS)
        assert 0 < size * layout.STREAM_UNIT <= PIECE_BYTES
        covered.setdefault(word, []).append((first, first + size))
    for pieces in covered.values():
        pieces.sort()
        assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:], strict=False))
    weights = sum(pieces[-1][1] - pieces[0][0] for pieces in covered.values())
    matrices = [graph.calls[k].args[i] for k in calls
                for i, operand in enumerate(graph.calls[k].function.operands)
                if operand.name in MATRICES[graph.calls[k].function.name]]
    elements = sum(int(np.prod([int(d.evaluate({})) for d in m.shape])) for m in matrices)
    assert weights * layout.STREAM_UNIT == elements * streams.ELEMENT_BYTES


# hidden and intermediate size: rows of a quarter and half a line, of three quarters, of 1, 4 and 6
@pytest.mark.parametrize("family, hidden, inner", sampled(
    [("llama", 512, 1536), ("qwen3", 256, 8192), ("qwen2", 256, 12288)], [("llama", 512, 1536)]))
def test_the_interpreted_worker_chooses_the_same_tokens_with_the_ring(
        family, hidden, inner, tiny_model, interpreted):
    directory = tiny_model(family, dtype="bfloat16", seed=3, hidden_size=hidden,
                           intermediate_size=inner, num_hidden_layers=1, num_attention_heads=8,
                           num_key_value_heads=2, head_dim=32)
    found = json.loads(interpreted("ring", directory).splitlines()[-1])
    assert found["with"] == found["without"]
    assert found["pieces"] > 0 and not found["left_out"]


@pytest.mark.usefixtures("with_ring")
@pytest.mark.parametrize("shape, arch", sampled(
    product(["qwen3-0.6b", "llama-3.2-1b", "qwen3-8b"], [90, 100]),
    [("qwen3-0.6b", 100), ("qwen3-8b", 90)]))
def test_what_reads_the_ring_needs_no_stack(shape, arch):
    graph = decoder_graph(shape, "bfloat16", 132)
    configured = configurations(graph.calls, target=tile_target_of(arch))
    worker = compile_worker({of: value for of, value in configured.items()
                             if of.function.name in MATRICES}, arch)
    assert (worker.stack_bytes, worker.spill_bytes) == (0, 0)
    assert worker.shared_bytes <= SHARED_MEMORY_LIMIT[arch]
    assert "cp.async.bulk.shared::cluster.global.mbarrier" in worker.ptx
    # every thread reads its 16 bytes of each line with one instruction
    takes = len(re.findall(r"\[full\], %r\d+;\s+@done bra READY", worker.ptx))
    assert len(re.findall(r"ld\.shared\.v4\.b32 \{%r\d+, %r\d+, %r\d+, %r\d+\},\s+\[at \+",
                          worker.ptx)) == takes * streams.PIECE_LINES > 0


@pytest.mark.usefixtures("with_ring")
@pytest.mark.parametrize("shape, arch", sampled(
    [("llama-3.2-1b", 90), ("qwen3-0.6b", 90), ("qwen3-8b", 90), ("qwen3-8b", 100)],
    [("llama-3.2-1b", 90)]))
def test_the_whole_worker_fits_with_the_ring(shape, arch):
    worker = compile_shape(shape, "bfloat16", arch)
    print(f"{shape} sm_{arch}: {worker.registers} registers, {worker.stack_bytes} bytes of stack, "
          f"{worker.shared_bytes} bytes shared, {worker.seconds:.1f} s")
    assert (worker.stack_bytes, worker.spill_bytes) == (0, 0)
    assert worker.shared_bytes <= SHARED_MEMORY_LIMIT[arch]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_shuffles_leave_each_warps_sums_where_they_are_looked_for(count):
    end, first, at = 1 << 20, 40, 4096
    floats = [np.random.default_rng(v).integers(0, 99, 256).astype(float) for v in range(count)]
    text = leave_sums(count, at).value
    _, shared = run(text, [0, *floats, end, first])
    expected = {end - at + 4 * (first + v * 8 + warp): floats[v][32 * warp:32 * warp + 32].sum()
                for v in range(count) for warp in range(8)}
    assert shared == expected
