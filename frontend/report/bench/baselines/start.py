"""A process that starts a baseline up to its first token, phase by phase: a line of JSON.

    python -m frontend.report.bench.baselines.start '{"engine": "torch-compile", "model": …}'

What is compiled or captured counts until a token has come from it. Then the process serves other
prompts, and says how often it compiled again.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Any

from event_tensor.errors import EventTensorError
from frontend.decode.phases import Phases

LIBRARIES = ("numpy", "torch", "transformers")
CAPTURED_BATCHES = (1, 2, 4, 8, 16, 32, 64)


def main() -> int:
    options = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    try:
        record = start(options)
    except EventTensorError as error:
        record = {"error": str(error)}
    answers.write(json.dumps(record) + "\n")
    answers.flush()
    return 2 if "error" in record else 0


def start(options: dict[str, Any]) -> dict[str, Any]:
    """`Work` as JSON → phases that sum to wall_s; seconds since the start of the process."""
    phases = Phases()
    phases.fill("interpreter")
    for library in LIBRARIES:
        with phases(f"import {library}"):
            import_module(library)
    with phases("import event-tensor"):
        from frontend.config.sampling import Sampling
        from frontend.report.bench.baselines.engine import Work
        from frontend.report.bench.baselines.load import load_engine
    work = Work(**options)
    with phases("weights"):
        engine: Any = load_engine(work)
    if work.engine == "cuda-graph":
        for batch in CAPTURED_BATCHES:
            with phases(f"capture: batch {batch}"):
                engine.capture(batch)
    with phases("prefill"):
        engine.start(Sampling())
        engine.feed(work.prompt_ids)
        token = engine.choose()
    if work.engine == "torch-compile":
        with phases("compile: decode step"):
            engine.feed([token])
            engine.choose()
    phases.end()
    compiled = compiled_graphs()
    for length in range(1, len(work.prompt_ids), 7):
        engine.start(Sampling())
        engine.feed(work.prompt_ids[:length])
        for _ in range(work.new_tokens - 1):
            engine.feed([engine.choose()])
    return {
        "engine": work.engine, "version": engine.version,
        "begin_s": phases.begin_s, "end_s": phases.end_s, **phases.record(phases.spans),
        "after_ready": {"compilations": compiled_graphs() - compiled}}


def compiled_graphs() -> int:
    """How many graphs torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # taking torch apart takes longer than a second
