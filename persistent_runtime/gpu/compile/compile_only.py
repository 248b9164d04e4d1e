"""The worker compiled for a chip that need not be there, and what the compiler says of it."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from persistent_runtime.function_table import Variant
from persistent_runtime.gpu.compile.ptx import own_pass
from persistent_runtime.gpu.compile.registry import kernel_tables
from persistent_runtime.gpu.ring.ring import ring_bytes
from persistent_runtime.gpu.target import TILE_TARGETS, tile_target_of
from persistent_runtime.gpu.worker.worker import run_worker

# Bytes of shared memory that one CTA may have, by compute capability.
SHARED_MEMORY_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
MAX_REGISTERS = 65536 // 256 - 1  # one CTA of 8 warps per SM: the compiler need not save any
SHARED_ALIGNMENT = 1024
RESOURCE = re.compile(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)")


@dataclass(frozen=True, slots=True)
class CompiledWorker:
    """registers: per thread. stack_bytes, spill_bytes: local memory per thread; 0 is right."""

    arch: int
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int  # the ring's included
    ptx: str
    seconds: float


def device_capability(device: Any) -> int:
    """90 for a device of compute capability 9.0."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def compiler_options(num_warps: int) -> dict[str, Any]:
    """Options of every compilation of the worker, for a launch as for a look at it."""
    # fp fusion is stated because its default differs between versions
    return {"num_warps": num_warps, "num_stages": 1, "launch_cooperative_grid": True,
            "enable_fp_fusion": True, "maxnreg": MAX_REGISTERS}


def make_room(compiled: Any, size: int) -> None:
    """Has every launch of a compiled kernel bring `size` bytes of shared memory beyond what the
    compiler laid out. Before the first launch; kernels may be handed out more than once."""
    if size and not hasattr(compiled, "room"):
        shared = -(-compiled.metadata.shared // SHARED_ALIGNMENT) * SHARED_ALIGNMENT + size
        compiled.metadata = compiled.metadata._replace(shared=shared)
        backend = make_backend(compiled.metadata.target)
        compiled.packed_metadata = backend.pack_metadata(compiled.metadata)
        compiled.room = size


def compile_worker(configured: Mapping[Variant, Any], arch: int, is_dynamic: bool = False
                   ) -> CompiledWorker:
    """Compiles `run_worker` for `sm_<arch>`; needs no GPU. configured: the function table, from
    `configurations`. is_dynamic: with the ready queue and data-dependent edges."""
    tiles = TILE_TARGETS[tile_target_of(arch)]
    bodies, values, fingerprint = kernel_tables(configured)
    names = ("launch", "first_worker")
    constants = {"FUNCTIONS": bodies, "CONFIGURATIONS": values, "FINGERPRINT": fingerprint,
                 "RING": tiles.ring_pieces, "DYNAMIC": is_dynamic, "INTERPRETED": False}
    signature = dict(zip(names, ("*i64", "i32"), strict=True)) | dict.fromkeys(
        constants, "constexpr")
    source = ASTSource(run_worker, signature, constexprs=constants,
                       attrs={(0,): [["tt.divisibility", 16]]})
    begin = time.perf_counter()
    with own_pass():
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32),
                                  options=compiler_options(tiles.num_warps))
    seconds = time.perf_counter() - begin
    make_room(compiled, ring_bytes(tiles.ring_pieces))
    registers, stack, spill = resource_usage(compiled.asm["cubin"])
    return CompiledWorker(arch, registers, stack, spill, compiled.metadata.shared,
                          compiled.asm["ptx"], seconds)


def resource_usage(cubin: bytes) -> tuple[int, int, int]:
    """Registers, stack bytes and local (spill) bytes per thread, read off the machine code."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([str(tool), "--dump-resource-usage", file.name], check=True,
                              capture_output=True, text=True).stdout
    found = RESOURCE.search(text)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {text}")
    return int(found[1]), int(found[2]), int(found[3])
