"""One mixture-of-experts layer by itself, with routing that the benchmark decides."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from event_tensor.conservative import conservative
from event_tensor.graph import Graph
from event_tensor.instantiate import instantiate
from event_tensor.task_table import Runtime
from frontend.config.decoder_config import DecoderConfig
from frontend.graph.operators import TOKENS, Limits, Operators
from frontend.graph.routings import sample_routings
from frontend.graph.tiles import EXPERT_ROWS, choose_tiles
from persistent_runtime.megakernel import Megakernel
from scheduling.choose import released
from scheduling.policies import POLICIES
from scheduling.schedule import Schedule
from scheduling.target import Target

NAME = "model.layers.0.mlp"
LAUNCH_MS = 100.0  # a launch takes about so long, or one step
LOUD = 30.0  # what a row holds in the columns of its experts; elsewhere its values lie around 1


def moe_graph(config: DecoderConfig, target: Target) -> Graph:
    """The MoE block of layer 0: hidden [tokens, hidden_size] is updated in place."""
    experts = config.experts
    assert experts is not None
    ops = Operators(config, choose_tiles(config, target, "bfloat16"), Limits(1, 8, 8, 1),
                    "bfloat16")
    hidden, inner = config.hidden_size, experts.intermediate_size
    x = ops.activation("hidden", TOKENS, hidden)
    ops.moe_block(NAME, x, ops.weight("norm", hidden), ops.weight("router", experts.num_experts,
                                                                  hidden),
                  ops.weight("gate_up", experts.num_experts, 2 * inner, hidden),
                  ops.weight("down", experts.num_experts, hidden, inner), experts)
    return ops.graph


def routed_rows(rows: int, experts: int, top_k: int, skew: float) -> npt.NDArray[np.int64]:
    """[rows, top_k] distinct experts, expert k in proportion to 1 / (k + 1) ** skew."""
    rng = np.random.default_rng(rows)
    weights = np.arange(1, experts + 1) ** -skew
    return np.stack([rng.choice(experts, top_k, replace=False, p=weights / weights.sum())
                     for _ in range(rows)])


class MoeLayer:
    """Weights and activations that every schedule of the layer works on."""

    def __init__(self, config: DecoderConfig, graph: Graph, most_rows: int) -> None:
        assert config.experts is not None
        self.config, self.graph, self.name = config, graph, NAME
        self.experts, self.top_k = config.experts.num_experts, config.experts.top_k
        self._most = {"tokens": most_rows}
        torch.manual_seed(0)
        self._memory: dict[str, Any] = {}
        for spec in graph.tensors():
            shape = [int(d.evaluate(self._most)) for d in spec.shape]
            if spec.role == "weight":
                self._memory[spec.name] = torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02)
        self._memory["norm"].fill_(1.0)
        # expert e is chosen by rows that are loud in column e, and no expert changes that
        self._memory["router"][:] = torch.eye(*self._memory["router"].shape)
        self._memory["down"][:, :self.experts] = 0

    def samples(self, bindings: Mapping[str, int]) -> list[Runtime]:
        return list(sample_routings(self.config, bindings))

    def set_rows(self, ids: npt.NDArray[np.int64]) -> None:
        """Hidden rows that the router sends to these experts."""
        rng = np.random.default_rng(1)
        self._rows = rng.standard_normal((len(ids), self.config.hidden_size)).astype(np.float32)
        np.put_along_axis(self._rows, ids, LOUD + rng.random(ids.shape), axis=1)
        self._ids = ids

    def tiles_of(self, ids: npt.NDArray[np.int64]) -> int:
        """Tiles of slots that this routing uses."""
        return int(-(-np.bincount(ids.ravel(), minlength=self.experts) // EXPERT_ROWS).sum())

    def runner(self, kernel: Megakernel, rows: int) -> LayerRun:
        buffers = kernel.backend.buffers()
        bindings = {"tokens": rows}
        for spec in kernel.graph.tensors():
            if spec.name in self._memory:
                buffers.bind(spec, self._memory[spec.name])
            else:
                buffers.allocate(spec, tuple(int(d.evaluate(bindings)) for d in spec.shape))
        return LayerRun(kernel, buffers, bindings, self._rows, self._ids)

    def sampled_schedule(self, graph: Graph, policy: str, bindings: Mapping[str, int],
                         runtime: Runtime, target: Target) -> Schedule:
        """A policy's places for the tasks that one routing releases, for the simulator."""
        table = instantiate(graph, bindings, runtime)
        if policy == "unfused":
            return POLICIES[policy](table, target)
        return released(POLICIES[policy](instantiate(conservative(graph), bindings), target), table)


class LayerRun:
    """One schedule of the layer for some rows. Every step adds the experts' output once more."""

    def __init__(self, kernel: Megakernel, buffers: Any, bindings: dict[str, int],
                 rows: npt.NDArray[np.float32], ids: npt.NDArray[np.int64]) -> None:
        self._kernel, self._buffers, self._bindings = kernel, buffers, bindings
        self._rows, self._ids = rows, ids
        self._tensors = {spec.name: spec for spec in kernel.graph.tensors()}
        self._steps = 1

    def _launch(self, steps: int) -> float:
        segment = self._kernel.segment(self._bindings, self._buffers, steps=steps)
        begin = time.perf_counter()
        self._kernel.launch([segment]).wait(poll_s=2e-4)
        return time.perf_counter() - begin

    def check(self) -> npt.NDArray[np.float32]:
        """The layer's output after one step; raises RuntimeError if it routed otherwise."""
        hidden = self._buffers.array(self._tensors["hidden"])
        hidden[:] = self._rows
        self._launch(1)
        routed = self._buffers.array(self._tensors[f"{NAME}.topk_ids"])
        if not np.array_equal(np.sort(routed, axis=1), np.sort(self._ids, axis=1)):
            raise RuntimeError("the router chose other experts than the benchmark meant")
        return np.array(hidden)

    def calibrate(self) -> None:
        seconds = min(self._launch(1) for _ in range(2))
        self._steps = max(int(LAUNCH_MS / 1e3 / max(seconds, 1e-5)), 1)

    def step_ms(self) -> float:
        """Milliseconds per step of one launch, whose start is the same for every schedule.

        The difference of two launches would leave the start out, at thrice the noise.
        """
        self._buffers.array(self._tensors["hidden"])[:] = self._rows
        return self._launch(self._steps) / self._steps * 1e3
