"""A deterministic text form of graphs and task tables; golden tests hold it."""

from __future__ import annotations

from event_tensor.edges import Edge
from event_tensor.graph import Call, Graph
from event_tensor.symbols import Expr, as_expr
from event_tensor.task_table import TaskTable
from event_tensor.tensors import EventTensor


def format_graph(graph: Graph) -> str:
    """Tensors, event tensors and calls, one a line."""
    lines = [f"graph {graph.name}({', '.join(graph.symbols())})"]
    lines += [f"  tensor {tensor!r} {tensor.role}" for tensor in graph.tensors()]
    lines += [f"  event {_event(event)}" for event in graph.events()]
    for call in graph.calls:
        lines += _call(call)
    return "\n".join(lines) + "\n"


def _event(event: EventTensor) -> str:
    count = event.wait_count
    text = f"{event!r} wait_count={count!r}"
    return text + (f" from {event.count_from.name}" if event.count_from else "")


def _call(call: Call) -> list[str]:
    grid = ", ".join(f"{axis}={n!r}"
                     for axis, n in zip(call.function.axes, call.tile_num, strict=True))
    args = ", ".join("none" if tensor is None else tensor.name for tensor in call.args)
    lines = [f"  {call.name} = {call.function.name}<{grid}>({args})"]
    constants = ", ".join(f"{k}={v!r}" if isinstance(v, Expr) else f"{k}={v:g}"
                          for k, v in call.parameters.items() if not is_neutral(call, k))
    if constants:
        lines.append(f"    with {constants}")
    lines += [f"    {'trigger' if edge.is_trigger else 'wait'} {_edge(edge)}"
              for edge in call.in_edges]
    lines += [f"    {'update' if edge.is_data_dependent else 'notify'} {_edge(edge)}"
              for edge in call.out_edges]
    return lines


def is_neutral(call: Call, parameter: str) -> bool:
    """Whether the call leaves the parameter at the value with which it does nothing."""
    neutral = call.function.neutral.get(parameter)
    return call.parameters[parameter] == (as_expr(neutral) if isinstance(neutral, int) else neutral)


def _edge(edge: Edge) -> str:
    return f"{edge.event.name} by {edge.map!r}"


def format_tasks(table: TaskTable) -> str:
    """Every task with its waits and notifies."""
    lines = [f"{table.num_tasks} tasks, {table.num_events} events"]
    for task in range(table.num_tasks):
        waits = table.waits_of(task)
        notifies = table.notifies_of(task)
        text = f"  {table.task_name(task)}"
        if len(waits):
            text += " wait " + ", ".join(
                f"{table.event_name(int(e))}={int(table.event_count[e])}" for e in waits)
        if len(notifies):
            text += " notify " + ", ".join(table.event_name(int(e)) for e in notifies)
        lines.append(text)
    return "\n".join(lines) + "\n"
