"""The argument record of one call outside any launch: for tests, benchmarks and new bodies."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from event_tensor.device_function import DeviceFunction
from event_tensor.errors import UserError
from persistent_runtime.rows import layout


def pack_arguments(declaration: DeviceFunction, values: dict[str, Any]
                   ) -> npt.NDArray[np.int64]:
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
