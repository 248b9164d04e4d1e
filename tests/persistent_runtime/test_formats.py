"""The table of formats, and function tables keyed by the formats of operands."""

import numpy as np
import pytest

pytest.importorskip("numba")

from event_tensor.device_function import WHOLE, DeviceFunction, Tile, reads, writes
from event_tensor.errors import UserError
from event_tensor.graph import Graph
from event_tensor.tensors import TensorSpec
from persistent_runtime import formats
from persistent_runtime.body_table import BodyTable
from persistent_runtime.function_table import FunctionTable
from persistent_runtime.functions import dense as df
from persistent_runtime.launch.memory import allocate
from persistent_runtime.megakernel import Megakernel


def linear_graph(*weights, biases=None, name="linears"):
    """out_k += x @ weight_k.T for weights of these dtypes; biases: dtypes or None, one for each."""
    graph, x = Graph(name), TensorSpec("x", (4, 32))
    for k, dtype in enumerate(weights):
        bias = biases[k] if biases else None
        weight = TensorSpec(f"weight{k}", (24, 32), dtype, "weight")
        graph.call_device(
            df.linear_residual, name=f"linear{k}",
            args=[x, weight, TensorSpec(f"bias{k}", (24,), bias, "weight") if bias else None,
                  TensorSpec(f"out{k}", (4, 24))],
            parameters={"tile_m": 4, "tile_n": 8, "in_features": 32,
                        "row_bytes": formats.row_bytes(weight), "rows": 4})
    return graph


def test_one_kernel_runs_one_function_in_several_formats():
    import torch

    from persistent_runtime.storage import as_array

    dtypes = ("float32", "bfloat16", "float32")
    kernel = Megakernel(linear_graph(*dtypes, biases=(None, "float32", "float32")), workers=2)
    assert [v.format("weight") for v in kernel.kernel.kinds.variants] == ["float32", "bfloat16"]
    assert [v.format("bias") for v in kernel.kernel.kinds.variants] == ["float32", "float32"]
    torch.manual_seed(0)
    x = torch.randn(4, 32)
    tensors, expected = {"x": x.numpy()}, []
    for k, dtype in enumerate(dtypes):
        weight = torch.randn(24, 32).to(getattr(torch, dtype))
        bias = torch.randn(24) if k else torch.zeros(24)
        tensors |= {f"weight{k}": as_array(weight), f"out{k}": np.zeros((4, 24), np.float32)}
        tensors |= {f"bias{k}": bias.numpy()} if k else {}
        expected.append(x.double() @ weight.double().T + bias)
    kernel.run({}, tensors)
    for k, wanted in enumerate(expected):
        np.testing.assert_allclose(tensors[f"out{k}"], wanted, atol=1e-5)


def test_a_graph_in_other_formats_needs_a_kernel_of_its_own():
    kernel = Megakernel(linear_graph("float32", "bfloat16"), workers=1)
    assert kernel.add(linear_graph("bfloat16", name="other")).graph.name == "other"
    with pytest.raises(UserError, match="linear_residual with operands, formats or sizes that"):
        kernel.add(linear_graph("float16"))


def test_variants_are_few_and_in_the_order_of_their_calls():
    table = FunctionTable.of([*linear_graph("bfloat16", "float32", "bfloat16").calls,
                              *linear_graph("bfloat16", biases=("float32",)).calls])
    assert [v.formats for v in table.variants] == [
        ("float32", "bfloat16", "float32", "float32"), ("float32",) * 4]
    graph = linear_graph("float32", "bfloat16")
    assert [table.kind_of(call) for call in graph.calls] == [1, 0]
    assert "linear_residual<float32, bfloat16, float32, float32>" in repr(table)


def test_a_second_format_of_a_name_is_refused():
    float32 = formats.format_of("float32")
    assert formats.register_format(float32) is float32
    other = formats.Format("float32", 1, 8, np.dtype(np.float64), float32.dequantize)
    with pytest.raises(UserError, match="a format 'float32' already"):
        formats.register_format(other)
    with pytest.raises(UserError, match="letters, digits"):
        formats.register_format(formats.Format("4 bits", 32, 18, np.dtype(np.uint8), None))
    with pytest.raises(UserError, match="'int3' is not a format"):
        formats.format_of("int3")


def test_rows_are_whole_blocks():
    blocks = formats.Format("b", 32, 18, np.dtype(np.uint8), lambda stored: stored)
    assert blocks.row_bytes(96) == 54 and blocks.stored_shape((3, 96)) == (3, 54)
    with pytest.raises(UserError, match="40 elements is not whole blocks of 32"):
        blocks.row_bytes(40)
    assert formats.stored_bytes((3, 5), "bfloat16") == 30
    assert formats.tensor_bytes(TensorSpec("w", (3, 5), "float32")) == 60
    assert allocate((3, 5), "bfloat16").dtype == np.uint16


def test_the_reference_of_each_format_is_what_torch_makes_of_it():
    import torch

    from persistent_runtime.storage import as_array

    values = torch.tensor([1.5, -0.1, 3e-5, 6e4, float("inf"), -0.0])
    for dtype in formats.DTYPES:
        kept = values.to(getattr(torch, dtype))
        found = formats.format_of(dtype).dequantize(as_array(kept))
        np.testing.assert_array_equal(found, kept.float().numpy())


def declared(name):
    return DeviceFunction(name, ("i",), (reads("x", Tile("i", 1)), writes("y", Tile("i", 1))))


def test_a_second_body_or_function_of_a_name_is_refused():
    table = BodyTable("CPU", "package.registry.cpu_body", ())
    table.add(declared("f"), "body", ("a", "f"))
    table.add(declared("f"), "the same, defined again", ("a", "f"))
    assert table.find(declared("f")) == "the same, defined again"
    with pytest.raises(UserError, match="'f' has a CPU body already, a.f"):
        table.add(declared("f"), "another", ("b", "f"))
    other = DeviceFunction("f", ("i",), (writes("y", WHOLE),))
    with pytest.raises(UserError, match="another device function 'f'"):
        table.add(other, "body", ("a", "g"))
    with pytest.raises(UserError, match="another device function 'norm_linear'"):
        table.add(declared("norm_linear"), "body", ("a", "norm_linear"))
    with pytest.raises(UserError, match=r"'g' has no CPU body.*@cpu_body\(g\) from package.reg"):
        table.find(declared("g"))
