"""llama.cpp through llama-cpp-python: its own defaults, as many threads as we have workers."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt

from event_tensor.errors import UserError
from frontend.config.sampling import Sampling

ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR of ggml.h
errors: list[str] = []


@llama_cpp.llama_log_callback
def keep_errors(level: int, text: bytes, _: Any) -> None:
    """Without this every load prints a page."""
    if level == ERROR_LEVEL:
        errors.append(text.decode(errors="replace").strip())


class LlamaCpp:
    """A GGUF file, batch 1. The KV cache is float16, llama.cpp's default, float32 for float32."""

    def __init__(self, path: Path, dtype: str, threads: int, capacity: int) -> None:
        self.version = f"llama-cpp-python {version('llama-cpp-python')}"
        llama_cpp.llama_log_set(keep_errors, None)
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise UserError(f"llama.cpp cannot load the model ({errors[0]}); leave llama-cpp out "
                            f"of --compare")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = capacity
        params.n_threads = params.n_threads_batch = threads
        if dtype == "float32":
            params.type_k = params.type_v = llama_cpp.GGML_TYPE_F32
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise UserError(f"llama.cpp cannot make a context of {capacity} tokens; measure fewer")
        self._batch_tokens = int(llama_cpp.llama_n_batch(self._context))
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model))
        self._sampler: Any = None

    def start(self, sampling: Sampling) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        if self._sampler is not None:
            llama_cpp.llama_sampler_free(self._sampler)
        self._sampler = None if sampling.is_greedy else sampler_chain(sampling)

    def feed(self, token_ids: Sequence[int]) -> None:
        for first in range(0, len(token_ids), self._batch_tokens):
            part = token_ids[first:first + self._batch_tokens]
            tokens = (llama_cpp.llama_token * len(part))(*part)
            code = llama_cpp.llama_decode(
                self._context, llama_cpp.llama_batch_get_one(tokens, len(part)))
            if code != 0:
                raise RuntimeError(f"llama_decode returned {code}")

    def choose(self) -> int:
        if self._sampler is None:  # numpy finds the largest faster than llama.cpp's greedy sampler
            return int(self._view().argmax())
        return int(llama_cpp.llama_sampler_sample(self._sampler, self._context, -1))

    def logits(self) -> npt.NDArray[np.float32]:
        return self._view().copy()

    def _view(self) -> npt.NDArray[np.float32]:
        pointer = llama_cpp.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(
            ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self._vocab_size,))


def sampler_chain(sampling: Sampling) -> Any:
    """top-k first: it leaves little to do, and temperature does not change who is in it."""
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for sampler in (llama_cpp.llama_sampler_init_top_k(sampling.top_k),
                    llama_cpp.llama_sampler_init_temp(sampling.temperature),
                    llama_cpp.llama_sampler_init_top_p(sampling.top_p, 1),
                    llama_cpp.llama_sampler_init_dist((sampling.seed or 0) % 2**32)):
        llama_cpp.llama_sampler_chain_add(chain, sampler)
    return chain
