"""What a compiled decoder is made of, as text files."""

from __future__ import annotations

from pathlib import Path

from event_tensor.printer import format_graph, format_tasks
from persistent_runtime.graph_schedules import GraphSchedules
from persistent_runtime.megakernel import Megakernel
from scheduling.schedule import Schedule


def dump(folder: Path, decode: Megakernel, prefill: GraphSchedules, schedule: Schedule
         ) -> list[Path]:
    """Writes the graphs, the tasks and schedule of a decode step, and the worker's source, machine
    code where there is some; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    orders = "\n".join(
        f"worker {w}: " + " ".join(schedule.table.task_name(int(t)) for t in order)
        for w, order in enumerate(schedule.orders))
    texts = {"graph.txt": format_graph(decode.graph),
             "prefill_graph.txt": format_graph(prefill.graph),
             "tasks.txt": format_tasks(schedule.table),
             "schedule.txt": f"{schedule.policy}\n{orders}\n", **decode.kernel.sources()}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]
