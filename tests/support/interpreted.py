"""Programs under Triton's interpreter: what test_gpu_interpreter.py and test_ring.py look at.

    TRITON_INTERPRET=1 python tests/support/interpreted.py model DIRECTORY '[5, 91]'

The interpreter has to be chosen before triton is imported, so none of them runs in a test's own
process. `interpreted` starts one that has everything imported, and forks for each program.
"""

import json
import sys
import time

import numpy as np
import pytest
import torch
import transformers
from fork_server import serve
from paths import TESTS
from random_models import random_model, unlikely_token
from suspension import notify_by_hand, stop_when_waiting

from event_tensor.errors import DeadlockError
from frontend import compile as frontend_compile
from frontend.graph import tiles
from persistent_runtime.gpu.interpret import InterpretedBackend, patch_language_once
from persistent_runtime.gpu.single_tile import run_tile
from persistent_runtime.rows import layout

WORKERS = 4
SUSPENDED_S = 6
NEW_TOKENS = 3
CHUNK = 64  # of prefill
# modules through which tests of bodies run them
SUPPORT = ("select_token", "body_references")


class GpuBodies:
    """Puts the GPU bodies in the place of the CPU bodies."""

    @pytest.fixture(autouse=True)
    def gpu_bodies(self, request, monkeypatch):
        for name in (request.module.__name__, *SUPPORT):
            if hasattr(sys.modules.get(name), "run_tile"):
                monkeypatch.setattr(sys.modules[name], "run_tile", run_tile)


def run_bodies(file, *options):
    patch_language_once()
    sys.exit(pytest.main([str(next(TESTS.rglob(f"{file}.py"))), "-q", "-x",
                          "-p", "no:cacheprovider", *options],
                         plugins=[GpuBodies()]))


def interpreted_decoder(directory, schedule="auto"):
    tiles.LINEAR_ROWS = CHUNK
    known = frontend_compile.find_backend
    frontend_compile.find_backend = lambda name: InterpretedBackend()
    try:
        return frontend_compile.compile_decode_loop(directory, dtype="float32", max_context=96,
                                                    workers=WORKERS, schedule=schedule)
    finally:
        frontend_compile.find_backend = known


def run_model(directory, prompt_json, schedule="auto"):
    prompt = json.loads(prompt_json)
    decoder = interpreted_decoder(directory, schedule)
    begin = time.monotonic()
    gpu = decoder.generate(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True).output_ids
    seconds = time.monotonic() - begin
    on_cpu = frontend_compile.compile_decode_loop(directory, backend="cpu", dtype="float32",
                                                  max_context=96)
    cpu = on_cpu.generate(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True).output_ids
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    tokens = model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
    print(json.dumps({"gpu": gpu, "cpu": cpu, "transformers": tokens[0, len(prompt):].tolist(),
                      "seconds": round(seconds, 1)}))


def run_random(seed, directory):
    case, begin = random_model(int(seed)), time.monotonic()
    prompt = min(case.prompts, key=len)[:40]
    decoder = interpreted_decoder(directory, case.schedule)
    output_ids = decoder.generate(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True).output_ids
    print(seed, case.family, case.schedule, f"{time.monotonic() - begin:.1f} s")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager",
        experts_implementation="eager")
    assert len(output_ids) == NEW_TOKENS
    assert unlikely_token(model, prompt, output_ids) is None, case


def step_without_a_notify(directory, schedule):
    """(kernel, segment, event) of one step whose embedding task does not notify that event: every
    other worker waits in vain."""
    decoder = interpreted_decoder(directory, schedule)
    kernel = decoder.kernel
    encoded = kernel.schedule(decoder.bindings(1, 1, 1))
    if schedule == "dynamic":
        action = next(a for a in encoded.edges.actions if a[layout.ACTION] == layout.NOTIFY)
        action[layout.ACTION], event = layout.CLEAR, action[layout.ACTION_EVENT]  # of no counter
    else:
        row = next(r for r in encoded.rows if r[layout.NOTIFY_END] > r[layout.NOTIFY_BEGIN])
        event = encoded.notifies[row[layout.NOTIFY_BEGIN]]
        row[layout.NOTIFY_END] = row[layout.NOTIFY_BEGIN]
    return kernel, kernel.segment(decoder.bindings(1, 1, 1), decoder._buffers), int(event)


def run_deadlock(directory, schedule="static"):
    kernel, segment, event = step_without_a_notify(directory, schedule)
    error = ""
    try:
        kernel.launch([segment], timeout_s=2.0).wait()
    except DeadlockError as raised:
        error = str(raised)
    print(json.dumps({"error": error,
                      "event": segment.encoded.schedule.table.event_name(event)}))


def run_suspended(directory):
    kernel, segment, event = step_without_a_notify(directory, "static")
    launch = kernel.launch([segment], timeout_s=SUSPENDED_S - 0.5)
    stop_when_waiting(launch, event, polling_s=1.0)
    notify_by_hand(launch, event)
    launch.wait()
    print("done")


def run_trace(directory, schedule="static"):
    decoder = interpreted_decoder(directory, schedule)
    decoder._launches.control.row_position[:3] = range(3)
    decoder._launches.control.finished[0] = 1
    segment = decoder.kernel.segment(decoder.bindings(1, 1, 3), decoder._buffers, steps=3,
                                     row_stride=1)
    launch = decoder.kernel.kernel.launch([segment], trace_steps=2)
    launch.wait()
    (trace,) = launch.trace()
    orders = segment.encoded.schedule.orders
    assert trace.worker.shape == (2, segment.encoded.schedule.table.num_tasks)
    for step in range(2):
        ran_by = [np.flatnonzero(trace.worker[step] == worker) for worker in range(WORKERS)]
        assert sum(map(len, ran_by)) == trace.worker.shape[1]
        for worker, order in enumerate(orders):
            if schedule == "dynamic":
                order = ran_by[worker][np.argsort(trace.end_us[step, ran_by[worker]])]
            assert (trace.worker[step, order] == worker).all()
            times = np.stack([trace.wait_us, trace.run_us, trace.end_us])[:, step, order]
            assert (np.diff(times.T.ravel()) >= 0).all()
    assert (trace.wait_us[1].min() >= trace.end_us[0].max())


def run_routed(policy, name):
    from moe_kernel_gpu import check_routings  # it registers bodies that no model has

    check_routings(InterpretedBackend(), WORKERS, policy, steps=2, names=[name])


def run_bounds(dtype, side, *names):
    from test_bounds import run_interpreted

    run_interpreted(dtype, side, *names)


def run_ring(directory):
    from ring_emulation import main

    main(directory)


PROGRAMS = {"bodies": run_bodies, "model": run_model, "deadlock": run_deadlock,
            "suspended": run_suspended, "trace": run_trace, "routed": run_routed,
            "random": run_random, "bounds": run_bounds, "ring": run_ring}

if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(PROGRAMS)
    else:
        PROGRAMS[sys.argv[1]](*sys.argv[2:])
