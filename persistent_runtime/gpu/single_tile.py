"""One tile of one device function outside any launch: how bodies are tested by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from event_tensor.device_function import DeviceFunction
from event_tensor.graph import Call
from event_tensor.symbols import as_expr
from event_tensor.tensors import TensorSpec
from persistent_runtime.function_table import OperandFormats, variant
from persistent_runtime.gpu.compile.compile_only import compiler_options, device_capability
from persistent_runtime.gpu.compile.registry import body_of, make_configuration
from persistent_runtime.gpu.compile.stored import loaders_of
from persistent_runtime.gpu.target import TILE_TARGETS, tile_target_of
from persistent_runtime.rows import layout
from persistent_runtime.rows.single_call import pack_arguments


@triton.jit
def run_body(arguments, tile, step, FUNCTION: tl.constexpr, CONFIG: tl.constexpr,
             FINGERPRINT: tl.constexpr):
    """Calls one body with coordinates and step words from memory."""
    FUNCTION(arguments,
             (tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)),
             (tl.load(step + layout.STEP_INDEX).to(tl.int32),
              tl.load(step + layout.ROW_BASE).to(tl.int32),
              tl.load(step + layout.LOGIT_BASE).to(tl.int32),
              tl.load(step + layout.ROW_ADVANCE).to(tl.int32)), CONFIG)


def call_of(declaration: DeviceFunction, values: dict[str, Any]) -> Call:
    """A call with these operands and parameters, as configurations want to see it."""
    args = tuple(None if values.get(operand.name) is None else
                 TensorSpec(operand.name, values[operand.name].shape, "float32")
                 for operand in declaration.operands)
    parameters = {name: value if isinstance(value, float) else as_expr(value)
                  for name, value in values.items() if name in declaration.parameters}
    return Call(0, declaration.name, declaration, (), args, parameters, (), ())


def run_tile(declaration: DeviceFunction, formats: OperandFormats, values: dict[str, Any],
             tile: Sequence[int], scratch_bytes: int = 0, step: dict[int, int] | None = None,
             device: str = "cpu") -> None:
    """The GPU's counterpart of `cpu.single_tile.run_tile`: results appear in the numpy arrays of
    `values`. On the device "cpu" the interpreter runs it."""
    interpreted = device == "cpu"
    target = replace(TILE_TARGETS["generic" if interpreted
                                  else tile_target_of(device_capability(device))], ring_pieces=0)
    of = variant(declaration, formats)
    config = make_configuration(of, [call_of(declaration, values)], interpreted, target)
    record = pack_arguments(declaration, values)
    coordinates, words = np.zeros(layout.MAX_TILE_RANK, np.int32), np.zeros(layout.STEP_WORDS,
                                                                            np.int64)
    coordinates[:len(tile)] = tile
    for offset, value in (step or {}).items():
        words[offset] = value
    copies: dict[str, torch.Tensor] = {}
    if not interpreted:
        offsets = layout.argument_offsets(declaration)
        for operand in declaration.operands:
            if values.get(operand.name) is not None:
                copies[operand.name] = torch.from_numpy(values[operand.name]).to(device)
                record[offsets[operand.name] + layout.ADDRESS] = copies[operand.name].data_ptr()
    inputs = [torch.from_numpy(array).to(device) for array in (record, coordinates, words)]
    options = {} if interpreted else compiler_options(target.num_warps) | {
        "launch_cooperative_grid": False}
    body = body_of(declaration).function
    keys = " ".join(getattr(f, "cache_key", "") for f in (body, *loaders_of(of.formats)))
    run_body[(1,)](*inputs, body, config, keys, **options)
    for name, copy in copies.items():
        values[name][...] = copy.cpu().numpy()
