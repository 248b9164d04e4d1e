"""What a benchmark compares us with, by the names `--compare` takes, and what each one needs."""

from __future__ import annotations

import importlib.util
import os
import shutil

from event_tensor.errors import UserError

BASELINES = ("transformers", "torch-compile", "llama-cpp", "cuda-graph")
PACKAGES_OF_LLAMA_CPP = {"llama_cpp": "llama-cpp-python", "gguf": "gguf"}  # module → package


def require_known(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in BASELINES:
            raise UserError(f"--compare {name} is not supported; supported: "
                            f"{', '.join(BASELINES)}")
        if names.count(name) > 1:
            raise UserError(f"--compare names {name} twice; name it once")


def require_available(name: str, device: str) -> None:
    """Raises UserError for a baseline that this machine cannot run on `device`, cpu or cuda."""
    if name == "llama-cpp":
        for module, package in PACKAGES_OF_LLAMA_CPP.items():
            if importlib.util.find_spec(module) is None:
                raise UserError(f"--compare llama-cpp needs the package {package}, which is not "
                                f"installed; install it with pip install 'event-tensor[bench]'")
    if name == "torch-compile" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UserError("--compare torch-compile needs a C++ compiler, and there is no g++; "
                        "install one or name it in CXX")
    if name == "llama-cpp" and device != "cpu":
        raise UserError("--compare llama-cpp is measured on the CPU only; use --backend cpu")
    if name == "cuda-graph" and device != "cuda":
        raise UserError("--compare cuda-graph needs a GPU and --backend cuda; leave it out")
