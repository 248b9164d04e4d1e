"""How many tasks of a launch ran, by what its workers counted."""

from persistent_runtime.launch.launch import Launch
from persistent_runtime.rows import layout


def task_counts(launch: Launch) -> list[dict[str, tuple[int, int]]]:
    """Per segment: call → (queued tasks that ran, rows whose tile no event released)."""
    return [{call.name: (done[layout.POPPED], done[layout.SKIPPED])
             for call, done in zip(segment.encoded.schedule.table.graph.calls,
                                   of_workers.sum(axis=0).tolist(), strict=True)}
            for segment, of_workers in zip(
                launch._segments, launch._downloaded(layout.TASK_COUNTS), strict=True)]
