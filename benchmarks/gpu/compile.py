"""What the compiler makes of the GPU worker for published shapes; needs no GPU.

    PYTHONPATH=. python benchmarks/gpu/compile.py --shape qwen3-0.6b --arch 90 --dtype bfloat16

Prints one JSON object per compilation: registers, stack, spills, shared memory, seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import triton

from benchmarks.make_model import PUBLISHED
from event_tensor.conservative import data_dependent_events
from event_tensor.graph import Graph
from frontend.families.decoder import build_step
from frontend.families.read_config import parse_config
from frontend.graph.control import Limits
from frontend.graph.operators import Operators
from frontend.graph.tiles import choose_tiles
from persistent_runtime.gpu.compile.compile_only import CompiledWorker, compile_worker
from persistent_runtime.gpu.compile.registry import configurations
from persistent_runtime.gpu.target import TILE_TARGETS, tile_target_of
from scheduling.target import H200

WORKERS = {80: 108, 90: 132, 100: 148}
SHAPES: dict[str, dict[str, Any]] = PUBLISHED | {
    "qwen3-8b": {  # Qwen/Qwen3-8B
        "model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288,
        "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "tie_word_embeddings": False,
        "bos_token_id": 151643, "eos_token_id": 151645}}


@contextmanager
def ring(pieces: int) -> Iterator[None]:
    """What is compiled here has rings of so many slots, where the chip can have one."""
    entries = {name: replace(tiles, ring_pieces=pieces) for name, tiles in TILE_TARGETS.items()
               if tiles.bulk_copies}
    with patch.dict(TILE_TARGETS, entries):
        yield


def decoder_graph(shape: str, dtype: str, workers: int) -> Graph:
    """The decode step of a published shape; two layers have all device functions."""
    config = parse_config(SHAPES[shape] | {"num_hidden_layers": 2}, None)
    operators = Operators(
        config, choose_tiles(config, H200.with_workers(workers), dtype),
        Limits(1, 4096, 4097, 1), dtype).for_decoding()
    build_step(operators)
    return operators.graph


def compile_shape(shape: str, dtype: str, arch: int, is_dynamic: bool = False) -> CompiledWorker:
    """With the ready queue for a graph that needs it, or if `is_dynamic`."""
    graph = decoder_graph(shape, dtype, WORKERS[arch])
    configured = configurations(graph.calls, target=tile_target_of(arch))
    return compile_worker(configured, arch,
                          is_dynamic or bool(data_dependent_events(graph)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="*", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--arch", nargs="*", type=int, default=list(WORKERS), choices=list(WORKERS))
    parser.add_argument("--dtype", nargs="*", default=["bfloat16"],
                        choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--ring-pieces", type=int, default=TILE_TARGETS["generic"].ring_pieces)
    options = parser.parse_args()
    for shape in options.shape:
        for arch in options.arch:
            for dtype in options.dtype:
                with ring(options.ring_pieces):
                    worker = compile_shape(shape, dtype, arch)
                print(json.dumps({
                    "shape": shape, "arch": arch, "dtype": dtype, "triton": triton.__version__,
                    "ring_pieces": options.ring_pieces if arch >= 90 else 0,
                    "registers": worker.registers, "stack_bytes": worker.stack_bytes,
                    "spill_bytes": worker.spill_bytes, "shared_bytes": worker.shared_bytes,
                    "seconds": round(worker.seconds, 1)}), flush=True)


if __name__ == "__main__":
    main()
