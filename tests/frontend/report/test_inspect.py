"""`inspect`: what the graph and the schedule hold, and the picture of a layer."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("numba")

from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop
from frontend.report.inspection import graph_record, queued_record, schedule_record
from frontend.report.layers import any_layer, layer_of
from frontend.report.schedule_picture import draw, layer_picture, simulated_slices

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module", params=[("demo", "static"), ("demo-moe", "hybrid"),
                                        ("demo", "dynamic"), ("demo", "unfused")], ids="-".join)
def decoder(request):
    model, schedule = request.param
    return compile_decode_loop(model, schedule=schedule, workers=2, max_context=64)


def test_graph_counts_are_those_of_the_task_table(decoder):
    record = json.loads(json.dumps(graph_record(decoder)))
    table = decoder.schedule.source
    assert sum(o["tasks"] for o in record["operators"]) == table.num_tasks
    assert sum(e["events"] for e in record["event_tensors"]) == table.num_events
    names = {event["name"] for event in record["event_tensors"]}
    for operator in record["operators"]:
        assert set(operator["waits_on"]) | set(operator["notifies"]) <= names
    for event in record["event_tensors"]:
        assert event["events"] == np.prod(event["sizes"], dtype=int)
        assert len(event["shape"]) == len(event["sizes"])


def test_schedule_occupancy_and_waits_add_up(decoder):
    record = json.loads(json.dumps(schedule_record(decoder)))
    table = decoder.schedule.table
    assert sum(w["tasks"] for w in record["workers"]) == record["tasks"] == table.num_tasks
    assert sum(w["rows"] for w in record["workers"]) + len(decoder.schedule.queued) == (
        table.num_tasks)
    assert sum(w["waits"] for w in record["workers"]) == record["waits"]
    by_waits = {int(n): tasks for n, tasks in record["waits_per_task"].items()}
    assert sum(by_waits.values()) == record["tasks"]
    assert sum(n * tasks for n, tasks in by_waits.items()) == record["waits"]
    assert all(0 < w["occupancy"] <= 1 for w in record["workers"])
    assert sum(q["queued"] for q in queued_record(decoder)) == len(decoder.schedule.queued)
    assert record["reason"]


@pytest.mark.parametrize("measured", [False, True])
def test_picture_has_every_task_of_the_layer(decoder, measured):
    layer = decoder.config.num_layers - 1
    text = layer_picture(decoder, layer, measured)
    table = decoder.schedule.table
    root = ElementTree.fromstring(text)
    width, height = (float(part) for part in root.get("viewBox").split()[2:])
    titles = []
    for bar in root.iter(f"{SVG}rect"):
        assert float(bar.get("x", 0)) + float(bar.get("width")) <= width
        assert float(bar.get("y", 0)) + float(bar.get("height")) <= height
        titles += [title.text.partition(": ")[0] for title in bar.iter(f"{SVG}title")]
    names = [table.task_name(task) for task in range(table.num_tasks)]
    own = [name for name in names if layer_of(name) == layer]
    assert set(titles) <= set(names) and len(titles) == len(set(titles))
    if not measured:
        assert set(own) <= set(titles)
    functions = {call.function.name for call in decoder.graph.calls if layer_of(call.name) == layer}
    drawn = {t.text for t in root.iter(f"{SVG}text")}
    assert functions & drawn and "worker 1" in drawn


def test_pictures_are_deterministic_and_tasks_of_a_worker_do_not_overlap(decoder):
    assert layer_picture(decoder, None, False) == layer_picture(decoder, None, False)
    slices, _ = simulated_slices(decoder)
    for worker in range(decoder.num_workers):
        own = sorted((s for s in slices if s.worker == worker), key=lambda s: s.begin_us)
        assert all(a.end_us <= b.begin_us + 1e-9 for a, b in zip(own, own[1:], strict=False))


def test_an_unknown_layer_is_refused(decoder):
    with pytest.raises(UserError, match="--layer 99 is not one of"):
        layer_picture(decoder, 99, False)


def test_names_in_a_picture_are_escaped(decoder):
    slices, table = simulated_slices(decoder)
    assert "a &lt; b" in draw(slices, table, 2, 0, "a < b")


def test_layers():
    assert layer_of("model.layers.12.mlp.down_proj") == 12
    assert layer_of("lm_head") is None
    assert any_layer("E_model.layers.12.mlp.gate_up") == "E_model.layers.*.mlp.gate_up"


def test_command_draws(command, tmp_path):
    file = tmp_path / "layer.svg"
    done = command("inspect", "demo", "--svg", file, "--layer", 0)
    assert done.returncode == 0, done.stderr
    assert "occupancy" in done.stdout
    assert "layer 0, auto schedule, simulated" in file.read_text(encoding="utf-8")
    done = command("inspect", "demo", "--svg", tmp_path / "none" / "layer.svg")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--svg" in done.stderr
