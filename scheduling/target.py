"""Hardware as data, and the cost model on it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from event_tensor.task_table import TaskTable


@dataclass(frozen=True, slots=True)
class Target:
    """What scheduling knows of a machine. All rates are for the whole machine.

    dependency_us: from a notify to the waiting task's start on another worker.
    task_us: fetching and dispatching one task. pop_us: taking one task off the ready queue.
    split_positions: of the context that one split of attention reads at least.
    queues_dense_parts: whether `auto` may queue what depends on no data; a GPU's worker is compiled
    without the queue where nothing needs it.
    spread: standard deviation of a task's time, relative: workers share memory, cores and clocks.
    rows_must_save: share of the time that rows must save before `auto` prefers them to the queue. A
    task in a row waits for its worker even when other programs have that worker's core.
    tiles_per_worker: how many tiles of one matrix product each worker should get at least;
    tile_bytes: weights of one tile at most; tile_columns: what a tile's columns are a multiple of.
    """

    name: str
    workers: int
    bandwidth_gb_s: float
    gflops: float
    dependency_us: float
    task_us: float
    pop_us: float
    shared_memory_bytes: int = 0
    tiles_per_worker: int = 4
    tile_bytes: int = 1 << 20
    tile_columns: int = 1
    split_positions: int = 256
    spread: float = 0.05
    queues_dense_parts: bool = False
    rows_must_save: float = 0.0

    def with_workers(self, workers: int) -> Target:
        """The same machine with another number of workers, each as fast as before."""
        scale = workers / self.workers
        return replace(self, workers=workers, bandwidth_gb_s=self.bandwidth_gb_s * scale,
                       gflops=self.gflops * scale)


def generic_cpu(workers: int) -> Target:
    """A current x86 or ARM core per worker: 20 GB/s and 80 GFLOP/s each."""
    return Target("cpu", workers, 20.0 * workers, 80.0 * workers, 0.3, 0.05, 0.1, spread=0.2,
                  queues_dense_parts=True, rows_must_save=0.1)


H200 = Target("h200", 132, 4300.0, 400_000.0, 1.2, 0.1, 1.0, 227 * 1024, tiles_per_worker=1,
              tile_columns=8, split_positions=64)


def task_costs_us(table: TaskTable, target: Target) -> npt.NDArray[np.float64]:
    """[tasks]: estimated time of each task on one worker sharing the machine with the others."""
    memory_us = table.bytes / (target.bandwidth_gb_s / target.workers * 1e3)
    compute_us = table.flops / (target.gflops / target.workers * 1e3)
    return np.maximum(memory_us, compute_us) + target.task_us
