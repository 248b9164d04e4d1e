"""A picture of one layer of a decode step: workers over time, coloured by device function."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from event_tensor.errors import UserError
from event_tensor.task_table import TaskTable
from frontend.decode.decoder import Decoder
from frontend.report.layers import layer_of
from frontend.report.trace_summary import median_step, step_bounds_us
from persistent_runtime.trace.record import SegmentTrace
from persistent_runtime.trace.timeline import Slice, function_of, timeline
from scheduling.simulator import estimate_makespan

WIDTH, LEFT, TOP, LANE, LANE_GAP, LEGEND_ROW, LEGEND_COLUMN = 1000, 80, 34, 26, 6, 20, 190
COLOURS = ("#4878a8", "#c9922e", "#3f8f6b", "#c4553d", "#8a63a8", "#5fa3a3", "#a8688a", "#7a7a3c",
           "#b07a5a", "#5a5aa8", "#88a04a", "#9a4a5a", "#4a8a9a", "#777777")
OTHER = "#e3e3e3"  # tasks of other layers
SMALLEST = 0.4  # pixels that a task is drawn with at least
TRACED_STEPS, TRACED_LAUNCHES = 8, 5


def layer_picture(decoder: Decoder, layer: int | None, measured: bool) -> str:
    """The SVG. layer: by default the middle one; measured: from a trace, else the simulator's
    estimate. Raises UserError for a layer that the model lacks."""
    layers = decoder.config.num_layers
    chosen = layers // 2 if layer is None else layer
    if not 0 <= chosen < layers:
        raise UserError(f"--layer {layer} is not one of the model's layers 0..{layers - 1}")
    slices, table = measured_slices(decoder) if measured else simulated_slices(decoder)
    source = "measured" if measured else "simulated"
    return draw(slices, table, decoder.num_workers, chosen,
                f"layer {chosen}, {decoder.schedule.policy} schedule, {source}")


def simulated_slices(decoder: Decoder) -> tuple[list[Slice], TaskTable]:
    """Of a decode step at a short context under the cost model."""
    estimate = estimate_makespan(decoder.schedule, decoder.kernel.target)
    times = zip(estimate.task_worker, estimate.task_begin_us, estimate.task_end_us, strict=True)
    return ([Slice(worker, begin, end, task) for task, (worker, begin, end) in enumerate(times)],
            decoder.schedule.table)


def measured_slices(decoder: Decoder) -> tuple[list[Slice], TaskTable]:
    """Of the step of median duration of a launch, the quickest of a few: on a busy machine workers
    lose their cores in between."""
    steps = min(TRACED_STEPS, decoder.max_context - 3)
    traces = [decoder.generate([0], max_new_tokens=steps + 1, ignore_eos=True, temperature=0.0,
                               trace_steps=steps).trace[-1] for _ in range(TRACED_LAUNCHES)]
    trace = min(traces, key=median_step_us)
    slices = [each for each in timeline(trace)[median_step(trace)] if each.task is not None]
    return slices, trace.table


def median_step_us(trace: SegmentTrace) -> float:
    begin, end = step_bounds_us(trace)
    return float((end - begin)[median_step(trace)])


def draw(slices: Sequence[Slice], table: TaskTable, workers: int, layer: int, title: str) -> str:
    """What overlaps the layer's time; tasks of other layers are pale."""
    tasks = [each for each in slices if each.task is not None]
    layers = [layer_of(call.name) for call in table.graph.calls]
    own = [each for each in tasks if layers[table.call[each.task]] == layer]
    begin, end = min(each.begin_us for each in own), max(each.end_us for each in own)
    shown = [each for each in tasks if each.end_us > begin and each.begin_us < end]
    present = {function_of(table, each.task) for each in own if each.task is not None}
    functions = [name for name in dict.fromkeys(c.function.name for c in table.graph.calls)
                 if name in present]
    colours = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(functions)}
    scale = (WIDTH - LEFT) / (end - begin)
    bottom = TOP + workers * (LANE + LANE_GAP)
    parts = [f'<text x="{LEFT}" y="16" font-size="14">{escape(title)}: {end - begin:.2f} µs</text>']
    parts += _axis(end - begin, scale, bottom)
    parts += [f'<text x="{LEFT - 8}" y="{_lane(worker) + LANE * 0.68:.1f}" text-anchor="end">'
              f'worker {worker}</text>' for worker in range(workers)]
    for each in sorted(shown, key=lambda s: (s.worker, s.begin_us)):
        assert each.task is not None
        x = LEFT + (max(each.begin_us, begin) - begin) * scale
        width = max((min(each.end_us, end) - max(each.begin_us, begin)) * scale, SMALLEST)
        is_own = layers[table.call[each.task]] == layer
        fill = colours[function_of(table, each.task)] if is_own else OTHER
        label = f"{table.task_name(each.task)}: {each.end_us - each.begin_us:.2f} µs"
        parts.append(f'<rect x="{x:.2f}" y="{_lane(each.worker)}" width="{width:.2f}" '
                     f'height="{LANE}" fill="{fill}" stroke="#fff" stroke-width="0.3">'
                     f'<title>{escape(label)}</title></rect>')
    legend, height = _legend({**colours, "other layers": OTHER}, bottom + 28)
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + 20} {height}" '
        f'width="{WIDTH + 20}" height="{height}" font-family="DejaVu Sans, sans-serif" '
        f'font-size="12">', f'<rect width="{WIDTH + 20}" height="{height}" fill="#fff"/>',
        *parts, *legend, "</svg>\n"])


def _lane(worker: int) -> int:
    return TOP + worker * (LANE + LANE_GAP)


def _axis(length_us: float, scale: float, bottom: int) -> list[str]:
    """At most ten round numbers of microseconds."""
    round_us = (digit * 10.0**power for power in range(-3, 7) for digit in (1, 2, 5))
    step = next(us for us in round_us if us * 10 >= length_us)
    parts = []
    for tick in np.arange(0, length_us, step).tolist():
        x = LEFT + tick * scale
        parts += [f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom}" stroke="#ccc"/>',
                  f'<text x="{x:.1f}" y="{bottom + 12}" text-anchor="middle" fill="#555">'
                  f'{tick:g} µs</text>']
    return parts


def _legend(colours: dict[str, str], top: int) -> tuple[list[str], int]:
    """(the parts, the height of the picture)"""
    columns = (WIDTH - LEFT) // LEGEND_COLUMN
    parts = []
    for k, (name, colour) in enumerate(colours.items()):
        x, y = LEFT + k % columns * LEGEND_COLUMN, top + k // columns * LEGEND_ROW
        parts += [f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>',
                  f'<text x="{x + 17}" y="{y + 10}">{escape(name)}</text>']
    return parts, top + ((len(colours) - 1) // columns + 1) * LEGEND_ROW
