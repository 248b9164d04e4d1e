"""Elements as numpy and torch see them, rotary tables on disk, and a start without torch."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop
from frontend.config.rope import RopeConfig
from frontend.graph import rope_cache
from frontend.graph.rope_cache import TABLES, KeptRopeTables
from frontend.graph.rope_tables import rope_tables
from frontend.model_files.checkpoint import Checkpoint, open_checkpoint
from persistent_runtime.cpu.compile.disk_cache import FUNCTIONS
from persistent_runtime.formats import format_of
from persistent_runtime.storage import as_array, as_tensor, converted

FLOATS = ("float32", "bfloat16", "float16")
VALUES = torch.cat([torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 100,
                    torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e38, 1e-40])])


@pytest.mark.parametrize("dtype", FLOATS)
def test_arrays_and_tensors_share_their_memory(dtype):
    tensor = VALUES.to(getattr(torch, dtype))
    array = as_array(tensor)
    assert array.dtype == format_of(dtype).storage and array.ctypes.data == tensor.data_ptr()
    assert as_tensor(array, dtype).data_ptr() == tensor.data_ptr()
    assert as_tensor(array, dtype).dtype == tensor.dtype
    turned = tensor[:6].view(2, 3).t()
    assert torch.equal(as_tensor(np.ascontiguousarray(as_array(turned)), dtype), turned)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("wanted", FLOATS)
def test_conversion_rounds_as_torch_does(dtype, wanted):
    tensor = VALUES.to(getattr(torch, dtype))
    result = converted(as_array(tensor), dtype, wanted)
    assert result.dtype == format_of(wanted).storage
    expected = tensor.to(getattr(torch, wanted))
    assert torch.equal(as_tensor(result, wanted).nan_to_num(7.0), expected.nan_to_num(7.0))


def test_unaligned_tensors_are_copied(tmp_path):
    path = tmp_path / "model.safetensors"
    values = {"a": torch.randn(5).bfloat16(), "b": torch.randn(3), "c": torch.randn(2).half()}
    save_file(values, path)
    whole = path.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    path.write_bytes((header + 3).to_bytes(8, "little") + whole[8:8 + header] + b"   "
                     + whole[8 + header:])
    checkpoint = open_checkpoint(path.parent)
    for name, tensor in values.items():
        assert checkpoint.read(name).flags.aligned
        assert torch.equal(as_tensor(checkpoint.read(name), checkpoint.dtype(name)), tensor)


def test_a_file_that_becomes_shorter_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(400)}, path)
    checkpoint = open_checkpoint(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match="tensor a cannot be read: .*shorter; download it again"):
        checkpoint.read("a")


def test_rotary_tables_are_kept_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(rope_cache, "TABLES", replace(TABLES, base=lambda: tmp_path))
    arguments = RopeConfig("llama3", 5e5, 8.0, 1.0, 4.0, 64), 24, 300
    cos, sin = rope_tables(*arguments)
    for is_kept in (False, True):
        tables = KeptRopeTables(*arguments)
        assert tables.is_kept == is_kept
        np.testing.assert_array_equal(tables.read(), [cos, sin])
    for context, is_kept in ((2, True), (4096, True), (4097, False), (1 << 30, False)):
        tables = KeptRopeTables(*arguments[:2], context)
        assert tables.is_kept == is_kept
        if context < 5000:
            np.testing.assert_array_equal(tables.read(), rope_tables(*arguments[:2], context))
    file = min(tmp_path.rglob("*.tables"), key=lambda file: file.stat().st_size)
    file.write_bytes(file.read_bytes()[:-5])
    damaged = KeptRopeTables(*arguments)
    assert not damaged.is_kept
    np.testing.assert_array_equal(damaged.read(), [cos, sin])
    assert KeptRopeTables(*arguments).is_kept


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(rope_cache, "TABLES", replace(TABLES, base=lambda: tmp_path / "file"))
    arguments = RopeConfig("default", 1e4), 8, 16
    for _ in range(2):
        tables = KeptRopeTables(*arguments)
        assert not tables.is_kept
        np.testing.assert_array_equal(tables.read(), rope_tables(*arguments))


def test_a_second_start_does_without_torch(run_command, tmp_path):
    """Its import takes longer than all the rest. Functions may be compiled already; rotary tables
    are not there."""
    functions = FUNCTIONS.directory()
    if functions.exists():
        shutil.copytree(functions, tmp_path / functions.name)
    look = ("import sys; from frontend.cli import run; run(sys.argv[1:]); "
            "print('torch' in sys.modules)")
    arguments = ("generate", "demo", "--backend", "cpu", "--prompt", "hacker:",
                 "--max-new-tokens", "8")
    shown = [run_command(*arguments, code=look, EVENT_TENSOR_CACHE=str(tmp_path)
                         ).stdout.splitlines() for _ in range(2)]
    assert shown[0][:-1] == shown[1][:-1] and len(shown[0]) > 1
    assert [lines[-1] for lines in shown] == ["True", "False"]
    assert any(name.startswith("rope-") for _, _, names in os.walk(tmp_path) for name in names)


def test_tensors_on_a_device_are_bound_where_they_are(tiny_model, monkeypatch):
    """There may be no GPU here: the model's own tensors stand for what lies on one."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model("qwen3_moe"))
    own = model.state_dict()
    monkeypatch.setattr(Checkpoint, "on_device", lambda self, name: own[name])
    decoder = compile_decode_loop(model, backend="cpu", max_context=64)
    addresses = decoder._buffers.addresses
    assert {name: addresses[spec] for name, spec in decoder._operators.weights.items()} == {
        name: own[name].data_ptr() for name in decoder._operators.weights}
    first = decoder.generate([5, 9, 2], max_new_tokens=4, ignore_eos=True).output_ids
    monkeypatch.undo()
    assert first == compile_decode_loop(model, backend="cpu", max_context=64).generate(
        [5, 9, 2], max_new_tokens=4, ignore_eos=True).output_ids


def test_tensors_that_no_decoder_needs_may_have_any_type(tiny_model, tmp_path):
    directory = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), directory)
    path = directory / "model.safetensors"
    save_file(load_file(path) | {"model.position_ids": torch.arange(3),
                                 "model.mask": torch.ones(2, dtype=torch.bool)}, path)
    decoders = [compile_decode_loop(d, max_context=64) for d in (directory, tiny_model("llama"))]
    first, second = (d.generate([3, 4], max_new_tokens=3, ignore_eos=True) for d in decoders)
    assert first.output_ids == second.output_ids
