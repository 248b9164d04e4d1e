"""Runs one tile of one device function on numpy arrays: for tests, benchmarks and new bodies."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from event_tensor.device_function import DeviceFunction
from persistent_runtime.cpu.compile.registry import compile_body
from persistent_runtime.function_table import OperandFormats
from persistent_runtime.rows import layout
from persistent_runtime.rows.single_call import pack_arguments

_ENTRY = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)


def run_tile(declaration: DeviceFunction, formats: OperandFormats, values: dict[str, Any],
             tile: Sequence[int], scratch_bytes: int = 0,
             step: dict[int, int] | None = None) -> None:
    """Executes the tile at coordinates `tile`; results appear in the arrays of `values`.

    `formats`: of the operands. `step` maps offsets of the step record
    (layout.py) to values, 0 where not given.
    """
    run_tiles(declaration, formats, values, [tile], scratch_bytes, step)


def run_tiles(declaration: DeviceFunction, formats: OperandFormats, values: dict[str, Any],
              tiles: Sequence[Sequence[int]], scratch_bytes: int = 0,
              step: dict[int, int] | None = None) -> None:
    """The same for several tiles of one call, one after the other."""
    record = pack_arguments(declaration, values)
    step_record = np.zeros(layout.STEP_WORDS, np.int64)
    for offset, value in (step or {}).items():
        step_record[offset] = value
    scratch = np.empty(scratch_bytes // 4 + 1, np.float32)
    function = c_function(declaration, formats)
    of_record, of_step, of_scratch = (a.ctypes.data for a in (record, step_record, scratch))
    for tile in tiles:
        coordinates = np.zeros(layout.MAX_TILE_RANK, np.int32)
        coordinates[:len(tile)] = tile
        function(of_record, coordinates.ctypes.data, of_step, of_scratch)


def c_function(declaration: DeviceFunction, formats: OperandFormats
               ) -> Callable[[int, int, int, int], None]:
    """The compiled body, which takes the addresses that a worker hands to it."""
    return _ENTRY(compile_body(declaration, formats).address)
