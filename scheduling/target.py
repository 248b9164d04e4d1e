"""Hardware as data, and the cost model on it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from event_tensor.task_table import TaskTable


@dataclass(frozen=True, slots=True)
class Target:
    """What scheduling knows of a machine. All rates are for the whole machine but worker_gb_s.

    worker_gb_s: what one worker reads while no other does; 0 where it is its share of the whole.
    cache_gb_s: where a step's weights stay in the caches, which they do up to cache_bytes.
    dependency_us: from a notify to the waiting task's start on another worker.
    task_us: fetching and dispatching one task, and what it does before it reads its weights.
    pop_us: pushing one task to the ready queue and taking it off.
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
    worker_gb_s: float = 0.0
    cache_gb_s: float = 0.0
    cache_bytes: int = 0

    def with_workers(self, workers: int) -> Target:
        """The same machine with another number of workers, each as fast as before."""
        scale = workers / self.workers
        return replace(self, workers=workers, bandwidth_gb_s=self.bandwidth_gb_s * scale,
                       gflops=self.gflops * scale, cache_gb_s=self.cache_gb_s * scale)

    def for_step(self, table: TaskTable) -> Target:
        """The same machine as this step sees it, which reads either its memory or, from the second
        time on, its caches. A part of the step then counts as a part, however little it reads."""
        if not self.cache_bytes:
            return self
        if table.bytes.sum() > self.cache_bytes:
            return replace(self, cache_bytes=0)
        return replace(self, cache_bytes=0, bandwidth_gb_s=self.cache_gb_s,
                       worker_gb_s=self.cache_gb_s / self.workers)


def generic_cpu(workers: int) -> Target:
    """A current x86 or ARM core per worker: 20 GB/s and 80 GFLOP/s each."""
    return Target("cpu", workers, 20.0 * workers, 80.0 * workers, 0.3, 0.05, 0.1, spread=0.2,
                  queues_dense_parts=True, rows_must_save=0.1)


H200 = Target("h200", 132, 4300.0, 400_000.0, 1.2, 0.1, 1.0, 227 * 1024, tiles_per_worker=1,
              tile_columns=8, split_positions=64)


def task_costs_us(table: TaskTable, target: Target) -> npt.NDArray[np.float64]:
    """[tasks]: estimated time of each task on one worker.

    Workers share the bandwidth, but as many at most as a call has tasks: others have nothing to
    read meanwhile, and one alone gets more than its share.
    """
    target = target.for_step(table)
    readers = np.minimum(np.diff(table.call_begin), target.workers)[table.call]
    fair_gb_s = target.bandwidth_gb_s / target.workers
    gb_s = np.minimum(target.bandwidth_gb_s / np.maximum(readers, 1),
                      max(target.worker_gb_s, fair_gb_s))
    compute_us = table.flops / (target.gflops / target.workers * 1e3)
    return np.maximum(table.bytes / (gb_s * 1e3), compute_us) + target.task_us
