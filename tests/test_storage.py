"""Elements as numpy and torch see them, rotary tables on disk, and a start without torch."""

import os

import numpy as np
import pytest
import torch

from frontend import rope_cache
from frontend.rope import rope_tables
from frontend.rope_cache import KeptRopeTables
from frontend.rope_config import RopeConfig
from persistent_runtime.storage import STORAGE_DTYPE, as_array, as_tensor, converted

FLOATS = ("float32", "bfloat16", "float16")
VALUES = torch.cat([torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 100,
                    torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e38, 1e-40])])


@pytest.mark.parametrize("dtype", FLOATS)
def test_arrays_and_tensors_share_their_memory(dtype):
    tensor = VALUES.to(getattr(torch, dtype))
    array = as_array(tensor)
    assert array.dtype == STORAGE_DTYPE[dtype] and array.ctypes.data == tensor.data_ptr()
    assert as_tensor(array, dtype).data_ptr() == tensor.data_ptr()
    assert as_tensor(array, dtype).dtype == tensor.dtype
    turned = tensor[:6].view(2, 3).t()
    assert torch.equal(as_tensor(np.ascontiguousarray(as_array(turned)), dtype), turned)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("wanted", FLOATS)
def test_conversion_rounds_as_torch_does(dtype, wanted):
    tensor = VALUES.to(getattr(torch, dtype))
    result = converted(as_array(tensor), dtype, wanted)
    assert result.dtype == STORAGE_DTYPE[wanted]
    expected = tensor.to(getattr(torch, wanted))
    assert torch.equal(as_tensor(result, wanted).nan_to_num(7.0), expected.nan_to_num(7.0))


def test_rotary_tables_are_kept_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(rope_cache, "cache_directory", lambda: tmp_path)
    arguments = RopeConfig("llama3", 5e5, 8.0, 1.0, 4.0, 64), 24, 300
    cos, sin = rope_tables(*arguments)
    for is_kept in (False, True):
        tables = KeptRopeTables(*arguments)
        assert tables.is_kept == is_kept
        np.testing.assert_array_equal(tables.read(), [cos, sin])
    assert not KeptRopeTables(*arguments[:2], 301).is_kept
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    damaged = KeptRopeTables(*arguments)
    assert not damaged.is_kept
    np.testing.assert_array_equal(damaged.read(), [cos, sin])
    assert KeptRopeTables(*arguments).is_kept


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    monkeypatch.setattr(rope_cache, "cache_directory", lambda: tmp_path / "missing")
    arguments = RopeConfig("default", 1e4), 8, 16
    for _ in range(2):
        tables = KeptRopeTables(*arguments)
        assert not tables.is_kept
        np.testing.assert_array_equal(tables.read(), rope_tables(*arguments))


def test_a_second_start_does_without_torch(run_command, tmp_path):
    """Its import takes longer than all the rest."""
    look = ("import sys; from frontend.cli import run; run(sys.argv[1:]); "
            "print('torch' in sys.modules)")
    arguments = ("generate", "demo", "--backend", "cpu", "--prompt", "hacker:",
                 "--max-new-tokens", "8")
    shown = [run_command(*arguments, code=look, EVENT_TENSOR_CACHE=str(tmp_path)
                         ).stdout.splitlines() for _ in range(2)]
    assert shown[0][:-1] == shown[1][:-1] and len(shown[0]) > 1
    assert [lines[-1] for lines in shown] == ["True", "False"]
    assert any(name.startswith("rope-") for _, _, names in os.walk(tmp_path) for name in names)
