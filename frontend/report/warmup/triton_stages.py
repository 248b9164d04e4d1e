"""Triton's compilations in the warmup report, stage by stage, through its public hook."""

from __future__ import annotations

import time
from typing import Any

import triton

from persistent_runtime.cache.compilations import COMPILATIONS, Compilation


def listen_to_triton() -> None:
    """From now on every compilation or cache hit of Triton joins COMPILATIONS."""
    triton.knobs.compilation.listener = record_stages


def record_stages(*, src: Any, metadata: dict[str, Any], metadata_group: dict[str, str],
                  times: Any, cache_hit: bool) -> None:
    """Triton calls this at the end and gives durations in microseconds: the stages follow one
    another, up to now."""
    stages = [("ir", times.ir_initialization), *times.lowering_stages,
              ("store", times.store_results)]
    begin_s = time.monotonic() - sum(us for _, us in stages) / 1e6
    for stage, us in stages:
        if us or not cache_hit:
            COMPILATIONS.append(Compilation(
                f"{src.name} {stage}", str(metadata["target"].arch), cache_hit, us / 1e6,
                begin_s=begin_s))
        begin_s += us / 1e6
