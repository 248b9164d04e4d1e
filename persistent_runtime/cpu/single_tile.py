"""Runs one tile of one device function on numpy arrays: for tests, benchmarks and new bodies."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from event_tensor.device_function import DeviceFunction
from event_tensor.errors import UserError
from persistent_runtime.cpu.compile.registry import compile_body
from persistent_runtime.rows import layout

_ENTRY = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)


def pack_arguments(declaration: DeviceFunction, values: dict[str, Any]) -> np.ndarray:
    """The argument record of one call: int64 words, addresses into the arrays of `values`.

    An optional operand that is None or missing has address 0; a missing parameter is
    neutral, or 0. The arrays must be C-contiguous and outlive the record.
    """
    words = (layout.OPERAND_WORDS * len(declaration.operands)) + len(declaration.parameters)
    record = np.zeros(words, np.int64)
    offsets = layout.argument_offsets(declaration)
    unknown = values.keys() - offsets.keys()
    if unknown:
        raise UserError(f"{declaration.name} has no operand or parameter {sorted(unknown)}; "
                        f"it has {', '.join(offsets)}")
    for operand in declaration.operands:
        array = values.get(operand.name)
        if array is None and operand.optional:
            continue
        if array is None or not array.flags.c_contiguous:
            raise UserError(f"{declaration.name} needs a contiguous array for {operand.name!r}")
        at = offsets[operand.name]
        record[at + layout.ADDRESS] = array.ctypes.data
        record[at + layout.DIMS:at + layout.DIMS + array.ndim] = array.shape
    for name in declaration.parameters:
        value = values.get(name, declaration.neutral.get(name, 0))
        bits = struct.unpack("<q", struct.pack("<d", value))[0]
        record[offsets[name]] = bits if isinstance(value, float) else value
    return record


def run_tile(declaration: DeviceFunction, dtype: str, values: dict[str, Any],
             tile: Sequence[int], scratch_bytes: int = 0,
             step: dict[int, int] | None = None) -> None:
    """Executes the tile at coordinates `tile`; results appear in the arrays of `values`.

    `step` maps offsets of the step record (layout.py) to values, 0 where not given.
    """
    run_tiles(declaration, dtype, values, [tile], scratch_bytes, step)


def run_tiles(declaration: DeviceFunction, dtype: str, values: dict[str, Any],
              tiles: Sequence[Sequence[int]], scratch_bytes: int = 0,
              step: dict[int, int] | None = None) -> None:
    """The same for several tiles of one call, one after the other."""
    record = pack_arguments(declaration, values)
    step_record = np.zeros(layout.STEP_WORDS, np.int64)
    for offset, value in (step or {}).items():
        step_record[offset] = value
    scratch = np.empty(scratch_bytes // 4 + 1, np.float32)
    function = c_function(declaration, dtype)
    of_record, of_step, of_scratch = (a.ctypes.data for a in (record, step_record, scratch))
    for tile in tiles:
        coordinates = np.zeros(layout.MAX_TILE_RANK, np.int32)
        coordinates[:len(tile)] = tile
        function(of_record, coordinates.ctypes.data, of_step, of_scratch)


def c_function(declaration: DeviceFunction, dtype: str) -> Callable[[int, int, int, int], None]:
    """The compiled body, which takes the addresses that a worker hands to it."""
    return _ENTRY(compile_body(declaration, dtype).address)
