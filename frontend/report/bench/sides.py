"""The sides of a benchmark: the megakernel in this process, every baseline in one of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from frontend.compile import Progress
from frontend.decode.decoder import Decoder
from frontend.decode.generation import Generation
from frontend.report.bench.baselines.engine import Work
from frontend.report.bench.baselines.process import BaselineProcess
from frontend.report.bench.gguf_export import export_gguf

OURS = "event-tensor"


class Side(Protocol):
    """One that is measured: see BaselineProcess for what the two return."""

    def run(self, kind: str) -> dict[str, Any]: ...

    def save_logits(self, output_ids: list[int], path: Path) -> None: ...


class Ours:
    """The megakernel. Its threads end with every launch."""

    def __init__(self, decoder: Decoder, work: Work) -> None:
        self._decoder, self._work = decoder, work

    def run(self, kind: str) -> dict[str, Any]:
        work = self._work
        if work.depth_ids:
            self._generate(work.depth_ids, 1, {"temperature": 0.0})
        result = self._generate([*work.depth_ids, *work.prompt_ids], work.new_tokens,
                                asdict(work.samplings[kind]), keep_cache=bool(work.depth_ids))
        return {"output_ids": result.output_ids, "start_ns": result.start_ns,
                "token_times_ns": result.token_times_ns}

    def _generate(self, ids: list[int], new_tokens: int, sampling: dict[str, Any],
                  keep_cache: bool = False) -> Generation:
        result = Generation([])
        for _ in self._decoder.stream(ids, max_new_tokens=new_tokens, ignore_eos=True,
                                      result=result, keep_cache=keep_cache, **sampling):
            pass
        return result

    def save_logits(self, output_ids: list[int], path: Path) -> None:
        fed = [*self._work.depth_ids, *self._work.prompt_ids, *output_ids[:-1]]
        np.save(path, self._decoder.logits(fed, last=len(output_ids)))


@contextmanager
def start_baselines(names: tuple[str, ...], work: Work, folder: Path,
                    progress: Progress | None = None) -> Iterator[dict[str, BaselineProcess]]:
    """The processes, loaded and warmed up one after the other; they end with the block."""
    with ExitStack() as processes:
        started = {}
        for done, name in enumerate(names):
            if progress:
                progress(f"warming up {name}", done, len(names))
            started[name] = processes.enter_context(start(replace(work, engine=name), folder))
        yield started


def start(work: Work, folder: Path) -> BaselineProcess:
    if work.engine != "llama-cpp":
        return BaselineProcess(work)
    path = folder / "model.gguf"
    export_gguf(Path(work.model), path, work.dtype, work.capacity)
    process = BaselineProcess(replace(work, model=str(path)))
    path.unlink()  # it is mapped; this way it is gone however the benchmark ends
    return process
