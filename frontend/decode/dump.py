"""What a compiled decoder is made of, as text files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from event_tensor.printer import format_graph, format_tasks

if TYPE_CHECKING:
    from frontend.decode.decoder import Decoder


def dump(decoder: Decoder, folder: Path) -> list[Path]:
    """Writes the graphs, the tasks and schedule of a decode step, and the worker's source, machine
    code where there is some; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    schedule = decoder.schedule
    orders = "\n".join(
        f"worker {w}: " + " ".join(schedule.table.task_name(int(t)) for t in order)
        for w, order in enumerate(schedule.orders))
    texts = {"graph.txt": format_graph(decoder.graph),
             "prefill_graph.txt": format_graph(decoder.prefill.graph),
             "tasks.txt": format_tasks(schedule.table),
             "schedule.txt": f"{schedule.policy}\n{orders}\n", **decoder.kernel.kernel.sources()}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]
