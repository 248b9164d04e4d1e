"""Traces of the CPU worker: every task once, no overlap, a file that Chrome's format allows."""

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("numba")

from event_tensor.conservative import conditional_calls, conservative_events
from frontend.compile import compile_decode_loop
from frontend.report.layers import layer_of, layer_record
from frontend.report.trace_summary import critical_path, summarise
from persistent_runtime.trace.chrome_trace import chrome_trace
from persistent_runtime.trace.timeline import END_OF_STEP, READY_QUEUE, timeline

STEPS = 4
PROMPT = [5, 91, 17, 4] * 66  # two chunks of prefill, or five
CASES = [("demo", "static"), ("demo", "dynamic"), ("demo", "unfused"), ("demo-moe", "hybrid"),
         ("demo-moe", "dynamic")]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def traced(request):
    """(decoder, traces) of one launch on two workers."""
    model, schedule = request.param
    decoder = compile_decode_loop(model, schedule=schedule, workers=2, max_context=512)
    options = {"max_new_tokens": STEPS + 2, "ignore_eos": True}
    plain = decoder.generate(PROMPT, **options)
    result = decoder.generate(PROMPT, trace_steps=STEPS, **options)
    assert result.output_ids == plain.output_ids
    assert plain.trace == []
    return decoder, result.trace


def must_run(trace):
    """[tasks]: those that every step runs."""
    table = trace.table
    return ~np.isin(table.call, list(conditional_calls(table.graph.original)))


def test_every_task_once_per_step_and_after_what_it_waits_for(traced):
    _, traces = traced
    assert len(traces[-1].worker) == STEPS  # of STEPS + 1 that ran
    for trace in traces:
        schedule = trace.segment.encoded.schedule
        ran = trace.worker >= 0
        assert ran[:, must_run(trace)].all()
        for worker, order in enumerate(schedule.orders):
            there = ran[:, order]
            assert (trace.worker[:, order][there] == worker).all()
        assert (trace.wait_us[ran] <= trace.run_us[ran]).all()
        assert (trace.run_us[ran] <= trace.end_us[ran]).all()
        check_order(trace)
        begins = np.where(ran, trace.run_us, np.inf).min(axis=1)
        assert (begins[1:] >= np.where(ran, trace.run_us, 0).max(axis=1)[:-1]).all()


def check_order(trace):
    """No task runs before those that it waits for have begun; an event that stands for a whole
    event tensor says nothing of single tasks."""
    table = trace.table
    indptr, producer = table.producers()
    tells = ~conservative_events(table)[table.wait_event]
    for task, event in zip(table.wait_task[tells].tolist(), table.wait_event[tells].tolist(),
                           strict=True):
        for before in producer[indptr[event]:indptr[event + 1]].tolist():
            ran = (trace.worker[:, [before, task]] >= 0).all(axis=1)
            assert (trace.run_us[ran, before] < trace.run_us[ran, task]).all()


def test_slices_cover_a_worker_without_overlap(traced):
    decoder, traces = traced
    queued = bool(len(decoder.schedule.queued))
    waits = set()
    for trace in traces:
        steps = timeline(trace)
        for step, slices in enumerate(steps):
            tasks = [each.task for each in slices if each.task is not None]
            assert sorted(tasks) == np.flatnonzero(trace.worker[step] >= 0).tolist()
            waits |= {each.wait for each in slices if each.task is None}
        for worker in range(decoder.num_workers):
            own = [each for slices in steps for each in slices if each.worker == worker]
            assert all(each.begin_us <= each.end_us for each in own)
            assert all(a.end_us <= b.begin_us for a, b in zip(own, own[1:], strict=False))
    assert END_OF_STEP in waits
    assert (READY_QUEUE in waits) == queued


def test_chrome_trace_is_well_formed(traced):
    decoder, traces = traced
    record = json.loads(json.dumps(chrome_trace(traces, {"model": "demo"}, layer_record)))
    check_chrome_trace(record, decoder.num_workers)
    functions = {call.function.name for call in decoder.graph.calls}
    tasks = [event for event in record["traceEvents"] if event.get("cat") == "task"]
    assert {event["name"] for event in tasks} == functions
    last = [event for event in tasks if event["args"]["segment"] == len(traces) - 1]
    table = traces[-1].table
    for step in range(STEPS):
        seen = [e["args"]["task"] for e in last if e["args"]["step"] == step]
        assert len(seen) == len(set(seen)) == (traces[-1].worker[step] >= 0).sum()
    for event in last:
        layer = layer_of(event["args"]["call"])
        tile = ", ".join(map(str, event["args"]["tile"]))
        assert table.task_name(event["args"]["task"]) == f"{event['args']['call']}[{tile}]"
        assert event["args"]["layer"] == layer


def test_a_launch_that_ends_early_leaves_fewer_steps():
    decoder = compile_decode_loop("demo", workers=2, max_context=64, schedule="static")
    first = decoder.generate([7], max_new_tokens=1, ignore_eos=True).output_ids
    decoder.config = replace(decoder.config, eos_token_ids=tuple(first))
    result = decoder.generate([7], max_new_tokens=STEPS + 1, trace_steps=STEPS)
    assert len(result.output_ids) == 1 and (result.trace[-1].worker < 0).all()
    record = chrome_trace(result.trace, {})
    check_chrome_trace(record, 2)
    assert {e["args"]["segment"] for e in record["traceEvents"] if e["ph"] == "X"} == {0}


def check_chrome_trace(record, workers):
    """The object form of the trace-event format: metadata names all threads, slices nest not."""
    named, slices = {}, {}
    for event in record["traceEvents"]:
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "M":
            if event["name"] == "thread_name":
                named[event["tid"]] = event["args"]["name"]
            continue
        assert event["ph"] == "X" and event["cat"] in ("task", "wait", "step")
        assert event["ts"] >= 0 and event["dur"] >= 0 and isinstance(event["args"], dict)
        slices.setdefault(event["tid"], []).append((event["ts"], event["dur"]))
    assert named == {0: "steps", **{w + 1: f"worker {w}" for w in range(workers)}}
    assert set(slices) == set(named)
    for own in slices.values():
        own.sort()
        assert all(a + dur <= b + 1e-4 for (a, dur), (b, _) in zip(own, own[1:], strict=False))


def test_summary_adds_up(traced):
    decoder, traces = traced
    record = summarise(traces[-1], decoder.kernel.target)
    busy = sum(worker["busy_us"] for worker in record["workers"])
    assert sum(f["run_us"] for f in record["functions"]) == pytest.approx(busy, abs=0.1)
    assert sum(f["share"] for f in record["functions"]) == pytest.approx(1, abs=0.01)
    assert sum(f["tasks"] for f in record["functions"]) == record["tasks"]
    for worker in record["workers"]:
        assert worker["busy_us"] + worker["wait_us"] == pytest.approx(record["step_us"], abs=0.1)
        assert 0 <= worker["wait_share"] <= 1
    path = record["critical_path"]
    assert 0 < path["run_us"] <= record["step_us"]
    assert path["run_us"] + path["between_us"] == pytest.approx(record["step_us"], abs=0.1)
    assert record["simulated_us"] > 0
    tasks = critical_path(traces[-1], 1)
    run = traces[-1].run_us[1, tasks]
    assert len(tasks) == len(set(tasks)) and (np.diff(run) > 0).all()


def test_attention_counts_the_context_that_it_reads():
    decoder = compile_decode_loop("demo", workers=2, max_context=512)
    bytes_of = []
    for prompt in ([7], [7] * 200):  # both decode with the same schedule
        result = decoder.generate(prompt, max_new_tokens=3, ignore_eos=True, trace_steps=2)
        record = summarise(result.trace[-1], decoder.kernel.target)
        (read,) = [f["bytes"] for f in record["functions"] if f["function"] == "attention"]
        context, config = record["bindings"]["context"], decoder.config
        assert context >= len(prompt) + 2
        cache = config.num_layers * config.num_kv_heads * config.head_dim * 2 * context
        assert read == cache * {"float32": 4, "bfloat16": 2}[decoder.dtype]
        bytes_of.append(read)
    assert bytes_of[1] > 20 * bytes_of[0]


def test_command_writes_a_file_and_states_its_cost(command, tmp_path):
    file = tmp_path / "trace.json.gz"
    done = command("trace", "demo", "-o", file, "--steps", 3, "--rounds", 2, "--workers", 2,
                   "--summary")
    assert done.returncode == 0, done.stderr
    for words in ("norm_gate_up", "critical path", "simulated", "tracing costs", "perfetto"):
        assert words in done.stdout
    with gzip.open(file) as stream:
        record = json.load(stream)
    check_chrome_trace(record, 2)
    assert record["otherData"]["tracing"]["rounds"] == 2
    done = command("trace", "demo", "--steps", 2, "--rounds", 1, "--json")
    summary = json.loads(done.stdout)
    assert {"step_us", "simulated_us", "functions", "workers", "critical_path", "tracing",
            "versions", "commit"} <= set(summary)


@pytest.mark.parametrize(("arguments", "words"), [
    (("demo",), ["-o FILE", "--summary"]),
    (("demo", "--summary", "--steps", "1"), ["--steps is 1", "at least 2"]),
    (("demo", "-o", "/no/such/folder/t.json"), ["/no/such/folder", "create it"]),
])
def test_mistakes_are_answered_in_one_line(command, arguments, words):
    done = command("trace", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    for word in words:
        assert word in done.stderr
