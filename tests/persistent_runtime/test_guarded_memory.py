"""What stands beside a tensor is guarded, and a child's report names the tensor."""

import ctypes
import os
import signal
import sys

import numpy as np
import pytest
from guarded_memory import SIDES, Bracket, in_child, report_faults

VALUES = np.arange(5, dtype=np.float32)


def touch(array, offset, is_write):
    """Reads or writes the byte `offset` bytes from the array's first."""
    byte = (ctypes.c_ubyte * 1).from_address(array.ctypes.data + offset)
    if is_write:
        byte[0] = 7
    return byte[0]


def told(side, offset, is_write=False, is_written=True):
    def work(report):
        bracket = Bracket(side)
        report_faults(bracket.describe, report)
        bracket.place("before", VALUES)
        array = bracket.place("x", VALUES, is_written)
        assert (array == VALUES).all()
        touch(array, offset, is_write)
        bracket.check_patterns()

    return in_child(work)


@pytest.mark.parametrize("side", SIDES)
def test_a_tensor_itself_may_be_touched(side):
    for offset in (0, VALUES.nbytes - 1):
        assert told(side, offset, is_write=True) == ""
        assert told(side, offset, is_written=False) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux's faults are reported with a place")
@pytest.mark.parametrize("side, offset, place", [
    ("end", 20, "0 bytes after the end of x"), ("end", 64 * 1024, "65516 bytes after the end of x"),
    ("begin", -1, "1 bytes before the beginning of x"),
    ("begin", 4096, "4076 bytes after the end of x")])
def test_a_fault_names_the_tensor_and_the_place(side, offset, place):
    for is_write in (False, True):
        assert f"SIGSEGV: {place}" in told(side, offset, is_write)


@pytest.mark.parametrize("side, offset, place", [
    ("end", -1, "1 bytes before the beginning of x"), ("begin", 20, "0 bytes after the end of x")])
def test_a_write_on_a_tensors_own_pages_is_found_afterwards(side, offset, place):
    assert f"written {place}" in told(side, offset, is_write=True)


def test_a_tensor_that_is_only_read_cannot_be_written():
    assert "byte 3 of x, which is only read" in told("end", 3, is_write=True, is_written=False)


def test_an_empty_tensor_has_no_byte():
    bracket = Bracket("end")
    assert bracket.place("empty", np.zeros((0, 3), np.float32)).shape == (0, 3)
    bracket.check_patterns()


def test_a_child_that_raises_or_is_killed_is_told():
    assert "ZeroDivisionError" in in_child(lambda report: 1 / 0)
    assert "SIGKILL" in in_child(lambda report: os.kill(os.getpid(), signal.SIGKILL))
