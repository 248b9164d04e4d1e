"""A few PTX instructions, run for all threads of a CTA: what the ring's shuffles come to."""

from __future__ import annotations

import operator
import re

import numpy as np

BINARY = {"and": operator.and_, "add": operator.add, "div": operator.floordiv,
          "shr": operator.rshift, "setp": operator.ne}

def run(text, operands, threads=256):
    """Registers and shared memory (address → value) after straight-line PTX.

    operands: $0, $1 … as [threads] arrays or numbers; registers that are written appear too.
    """
    thread = np.arange(threads)
    registers = {f"${k}": np.broadcast_to(v, threads).copy() for k, v in enumerate(operands)}
    registers |= {"%laneid": thread % 32, "%tid.x": thread}
    shared = {}

    def value(name):
        name = name.strip()
        return registers[name] if name in registers else np.full(threads, int(name, 0))

    for statement in re.sub(r"\{|\}|\.reg[^;]*;", "", text).split(";"):
        statement = statement.strip()
        if not statement:
            continue
        guard = re.match(r"@(!?)(\w+)\s+(.*)", statement, re.S)
        active = np.ones(threads, bool)
        if guard:
            active = registers[guard[2]].astype(bool) ^ bool(guard[1])
            statement = guard[3]
        operation, _, rest = statement.partition(" ")
        out, *parts = (p.strip() for p in rest.split(","))
        kind = operation.split(".")[0]
        if kind == "st":
            base, offset = re.match(r"\[(\$?\w+) \+ (-?\d+)\]", out).groups()
            for at, stored in zip((value(base) + int(offset))[active], value(parts[0])[active],
                                  strict=True):
                assert int(at) not in shared  # no two threads store to one place
                shared[int(at)] = stored
            continue
        a = value(parts[0])
        if kind == "mov":
            found = a
        elif kind == "selp":
            found = np.where(registers[parts[2]].astype(bool), a, value(parts[1]))
        elif kind == "mad":
            found = a * value(parts[1]) + value(parts[2])
        elif kind == "shfl":
            found = a[thread ^ int(parts[1])]
        else:
            found = BINARY[kind](a, value(parts[1]))
        registers[out] = found
    return registers, shared
