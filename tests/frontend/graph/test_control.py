"""The table of control tensors: declared once, shared by all graphs of a decoder."""

from dataclasses import fields

import pytest

from event_tensor.tensors import TensorSpec
from frontend.graph.control import Control, Limits, declare
from persistent_runtime.rows import layout

LIMITS = Limits(max_requests=3, max_context=64, max_steps_rows=99, num_stop_ids=5)


@pytest.mark.parametrize("name, shape, dtype, role", [
    ("row_request", (99,), "int32", "control"), ("token_ids", (3, 64), "int32", "control"),
    ("token_time", (3, 64), "int64", "control"), ("stop_ids", (5,), "int32", "control"),
    ("sampling", (3, layout.SAMPLING_WORDS), "float32", "control"),
    ("processors", (3, layout.PROCESSORS_WORDS), "int32", "input")])
def test_limits_give_the_shapes(name, shape, dtype, role):
    spec = getattr(declare(LIMITS), name)
    assert (spec.name, spec.dtype, spec.role) == (name, dtype, role)
    assert tuple(int(dim.evaluate({})) for dim in spec.shape) == shape


def test_the_host_reads_the_length_first_and_times_as_those_of_a_clock():
    reads = {row.name: getattr(declare(LIMITS), row.name).host_reads for row in fields(Control)}
    special = {name: how for name, how in reads.items() if how != "as written"}
    assert special == {"length": "first", "token_time": "as a clock"}


def test_a_table_of_something_else_has_the_same_rows():
    names: Control[str] = declare(LIMITS).each(lambda spec: spec.name)
    assert all(getattr(names, row.name) == row.name for row in fields(Control))
    assert isinstance(declare(LIMITS).length, TensorSpec)


def test_both_graphs_of_a_decoder_have_the_same_tensors(tiny_model):
    from frontend.compile import compile_decode_loop

    decoder = compile_decode_loop(tiny_model("llama"), workers=1, max_context=64)
    tensors = set(decoder.graph.tensors()) & set(decoder.prefill.graph.tensors())
    control = decoder._operators.control
    assert {getattr(control, row.name) for row in fields(Control)} <= tensors
    assert decoder._launches.control.length is decoder._buffers.array(control.length)
