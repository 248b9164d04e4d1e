"""The process of one baseline: it holds the loaded model and works only when it is asked to.

One JSON object per line: `Work` comes first, then requests; each is answered by one line.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from event_tensor.errors import EventTensorError
from frontend.report.bench.baselines.engine import Work, logits_of, run_round
from frontend.report.bench.baselines.load import load_engine
from frontend.report.machine import peak_rss_mb


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent reports; a traceback helps nobody
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    try:
        serve(sys.stdin, answers)
    except EventTensorError as error:
        answer(answers, {"error": str(error)})
    except Exception as error:  # whatever the libraries come up with
        reason = next(iter(str(error).strip().splitlines()), "")
        answer(answers, {"failed": f"{type(error).__name__}: {reason}"})
        raise


def serve(requests: TextIO, answers: TextIO) -> None:
    work = Work(**json.loads(requests.readline()))
    begin = time.monotonic()
    engine = load_engine(work)
    loaded = time.monotonic()
    for sampling in work.samplings.values():  # whole rounds: all that compiles must have compiled
        run_round(engine, work, sampling)
    answer(answers, {"version": engine.version, "load_s": round(loaded - begin, 2),
                     "warm_up_s": round(time.monotonic() - loaded, 2)})
    for line in requests:
        request = json.loads(line)
        if "save_logits" in request:
            np.save(Path(request["save_logits"]), logits_of(engine, work, request["output_ids"]))
            answer(answers, {})
        else:
            done = run_round(engine, work, work.samplings[request["run"]])
            answer(answers, {**done, "peak_rss_mb": peak_rss_mb()})


def answer(answers: TextIO, record: dict[str, Any]) -> None:
    answers.write(json.dumps(record) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
