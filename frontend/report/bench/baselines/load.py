"""The one place where a name of BASELINES becomes a class: libraries are imported here."""

from __future__ import annotations

from pathlib import Path

from frontend.report.bench.baselines.engine import Engine, Work


def load_engine(work: Work) -> Engine:
    if work.engine == "llama-cpp":
        from frontend.report.bench.baselines.llama_cpp import LlamaCpp

        return LlamaCpp(Path(work.model), work.dtype, work.workers, work.capacity)
    from frontend.report.bench.baselines.torch_engines import CudaGraph, Eager, TorchCompile

    engines = {"transformers": Eager, "torch-compile": TorchCompile, "cuda-graph": CudaGraph}
    return engines[work.engine](work)
