"""transformers, as it is, compiled by torch.compile, and captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from frontend.config.sampling import Sampling
from frontend.report.bench.baselines.engine import Work
from frontend.report.reference import load_transformers

WARM_UP_STEPS = 3  # before a CUDA graph is captured


class Eager:
    """transformers with the growing KV cache that `generate` uses."""

    def __init__(self, work: Work) -> None:
        import transformers

        torch.set_num_threads(work.workers)
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.model = load_transformers(Path(work.model), work.dtype).to(work.device)
        self.device, self.capacity = work.device, work.capacity
        self._random = torch.Generator(work.device)
        self._cache: Any = None

    def start(self, sampling: Sampling) -> None:
        from transformers import DynamicCache

        self._cache = DynamicCache(config=self.model.config)
        self._follow(sampling)

    def _follow(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random.manual_seed(sampling.seed or 0)

    @torch.no_grad()
    def feed(self, token_ids: Sequence[int]) -> None:
        inputs = torch.tensor([list(token_ids)], device=self.device)
        self._logits, self._likeliest = self._forward(inputs)

    def _forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """inputs: [1, tokens] → logits after the last: [vocab], and the likeliest token"""
        logits = self.model(input_ids=inputs, past_key_values=self._cache, use_cache=True,
                            logits_to_keep=1).logits[0, -1]
        return logits, logits.argmax()

    def choose(self) -> int:
        if self._sampling.is_greedy:
            return int(self._likeliest)
        return draw(self._logits, self._sampling, self._random)

    def logits(self) -> npt.NDArray[np.float32]:
        return self._logits.float().cpu().numpy()


class StaticEager(Eager):
    """A KV cache of fixed size and address, which compiled and captured steps need."""

    def __init__(self, work: Work) -> None:
        from transformers import StaticCache

        super().__init__(work)
        self._cache = StaticCache(config=self.model.config, max_cache_len=work.capacity)
        self._step: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = self._forward

    def start(self, sampling: Sampling) -> None:
        self._cache.reset()
        self._follow(sampling)

    @torch.no_grad()
    def feed(self, token_ids: Sequence[int]) -> None:
        inputs = torch.tensor([list(token_ids)], device=self.device)
        forward = self._step if len(token_ids) == 1 else self._forward
        self._logits, self._likeliest = forward(inputs)


class TorchCompile(StaticEager):
    """The decode step, choice of the likeliest token included, as one compiled graph."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._step = torch.compile(self._forward, fullgraph=True)


class CudaGraph(StaticEager):
    """The decode step, choice of the likeliest token included, captured in a CUDA graph."""

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._graphs: list[Any] = []

    def start(self, sampling: Sampling) -> None:
        if not self._graphs:
            self.capture(1)
        super().start(sampling)

    def capture(self, batch: int) -> None:
        """One step of `batch` sequences; that of one sequence is what `feed` replays."""
        from transformers import StaticCache

        cache = self._cache if batch == 1 else StaticCache(
            config=self.model.config, max_cache_len=self.capacity)
        token = torch.zeros(batch, 1, dtype=torch.int64, device="cuda")

        def step() -> tuple[torch.Tensor, torch.Tensor]:
            logits = self.model(input_ids=token, past_key_values=cache, use_cache=True,
                                logits_to_keep=1).logits[:, -1]  # [batch, vocab]
            return logits[0], logits.argmax(-1)[0]

        with torch.no_grad(), torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(WARM_UP_STEPS):
                step()
                cache.reset()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            captured = step()
        self._graphs.append((graph, cache, token))

        def replay(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            token.copy_(inputs)
            graph.replay()
            return captured

        if batch == 1:
            self._step = replay


def draw(logits: torch.Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """What transformers' temperature, top-k and top-p do, on the k likeliest tokens alone."""
    best, tokens = logits.float().topk(min(sampling.top_k or len(logits), len(logits)))
    chances = (best / sampling.temperature).softmax(-1)
    chances[chances.cumsum(-1) - chances >= sampling.top_p] = 0
    return int(tokens[torch.multinomial(chances, 1, generator=random)])
