"""The opponent of decode.py: batch-1 decoding in PyTorch as a careful user would write it.

Packed QKV and gate-up weights, a static KV cache, and one CUDA graph for every decode step, which
attends to exactly the positions there are; token selection, embedding and the position's update
are inside. Weights and cache are the very memory that the megakernel works on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from frontend.config.decoder_config import DecoderConfig
from frontend.graph.rope_tables import rope_tables

WARM_UP_STEPS = 3  # the second length makes torch.compile generalise, the third must be free
Caches = Sequence[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True)
class LayerWeights:
    attention_norm: torch.Tensor  # [hidden]
    qkv: torch.Tensor  # [(heads + 2 * kv_heads) * head_dim, hidden]
    qk_norm: torch.Tensor | None  # [heads + kv_heads, head_dim]
    output: torch.Tensor  # [hidden, heads * head_dim]
    mlp_norm: torch.Tensor
    gate_up: torch.Tensor  # [2 * intermediate, hidden]
    down: torch.Tensor  # [hidden, intermediate]


def pack(modules: Sequence[torch.nn.Linear]) -> torch.Tensor:
    """One matrix of all rows; the modules' own weights become views of it."""
    packed = torch.cat([module.weight.data for module in modules])
    rows = [module.out_features for module in modules]
    for module, part in zip(modules, packed.split(rows), strict=True):
        module.weight.data = part
    return packed


def pack_layers(model: Any, config: DecoderConfig) -> list[LayerWeights]:
    """Packs the weights of a transformers model in place."""
    layers = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        qk_norm = None
        if config.qk_norm:
            qk_norm = torch.cat([
                attention.q_norm.weight.data.expand(config.num_heads, -1),
                attention.k_norm.weight.data.expand(config.num_kv_heads, -1)])
        layers.append(LayerWeights(
            layer.input_layernorm.weight.data,
            pack([attention.q_proj, attention.k_proj, attention.v_proj]), qk_norm,
            attention.o_proj.weight.data, layer.post_attention_layernorm.weight.data,
            pack([mlp.gate_proj, mlp.up_proj]), mlp.down_proj.weight.data))
    return layers


class DecodeStep:
    """One decode step and its state: the token, its position, the logits it leads to.

    caches: keys and values of each layer, [1, kv_heads, capacity, head_dim].
    """

    def __init__(self, model: Any, layers: list[LayerWeights], config: DecoderConfig,
                 caches: Caches) -> None:
        self.config, self.layers, self.caches = config, layers, caches
        self.embedding = model.model.embed_tokens.weight.data
        self.norm, self.head = model.model.norm.weight.data, model.lm_head.weight.data
        device, dtype = self.embedding.device, self.embedding.dtype
        capacity = caches[0][0].shape[2]
        # [capacity, head_dim], as transformers has them: computed in float32, rounded, applied
        self.cos, self.sin = (
            torch.from_numpy(table).to(device, dtype).repeat(1, 2)
            for table in rope_tables(config.layers[0].rope, config.head_dim, capacity))
        self.token = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.tokens = torch.zeros(capacity + 1, dtype=torch.int64, device=device)
        self.logits = torch.zeros(1, self.head.shape[0], dtype=dtype, device=device)

    def start(self, token: int, position: int) -> None:
        self.token.fill_(token)
        self.position.fill_(position)

    def norm_of(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self.config.rms_norm_eps)

    def step(self, context: int) -> None:
        """Feeds `token` at `position`, which is context - 1, and moves both on."""
        hidden = F.embedding(self.token, self.embedding)  # [1, hidden]
        cos, sin = self.cos[self.position], self.sin[self.position]  # [1, head_dim]
        for layer, (k_cache, v_cache) in zip(self.layers, self.caches, strict=True):
            attended = self.attend(layer, self.norm_of(hidden, layer.attention_norm), k_cache,
                                   v_cache, cos, sin, context)
            hidden = hidden.addmm_(attended, layer.output.t())
            gate, up = F.linear(self.norm_of(hidden, layer.mlp_norm), layer.gate_up).chunk(2, -1)
            hidden = hidden.addmm_(F.silu(gate) * up, layer.down.t())
        logits = F.linear(self.norm_of(hidden, self.norm), self.head)  # [1, vocab]
        self.logits.copy_(logits)
        self.token.copy_(logits.argmax(-1))
        self.position.add_(1)
        self.tokens.index_copy_(0, self.position, self.token)

    def attend(self, layer: LayerWeights, x: torch.Tensor, k_cache: torch.Tensor,
               v_cache: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, context: int
               ) -> torch.Tensor:
        """x: [1, hidden] → [1, heads * head_dim]"""
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        qkv = F.linear(x, layer.qkv).view(heads + 2 * kv_heads, self.config.head_dim)
        qk, v = qkv[:heads + kv_heads], qkv[heads + kv_heads:]
        if layer.qk_norm is not None:
            qk = F.rms_norm(qk, (qk.shape[-1],), None, self.config.rms_norm_eps) * layer.qk_norm
        half = qk.shape[-1] // 2
        qk = qk * cos + torch.cat((-qk[:, half:], qk[:, :half]), -1) * sin
        k_cache.index_copy_(2, self.position, qk[heads:][None, :, None])
        v_cache.index_copy_(2, self.position, v[None, :, None])
        attended = F.scaled_dot_product_attention(
            qk[:heads][None, :, None], k_cache[:, :, :context], v_cache[:, :, :context],
            enable_gqa=True)  # [1, heads, 1, head_dim]
        return attended.reshape(1, -1)


def flash_attention() -> AbstractContextManager[None]:
    """The attention that splits the context of a single query over the device."""
    return sdpa_kernel(SDPBackend.FLASH_ATTENTION) if torch.cuda.is_available() else nullcontext()


class GraphedSteps:
    """`steps` consecutive decode steps from `first` on, each captured in a CUDA graph."""

    def __init__(self, decode: DecodeStep, first: int, steps: int, compiled: bool) -> None:
        self.decode, self.first = decode, first
        self.stream = torch.cuda.Stream()
        step: Callable[[int], None] = decode.step
        if compiled:  # without torch.compile's own graphs: the capture below makes better ones
            step = torch.compile(decode.step, mode="max-autotune-no-cudagraphs")
        self.stream.wait_stream(torch.cuda.default_stream())
        with flash_attention(), torch.no_grad(), torch.cuda.stream(self.stream):
            decode.start(0, first)
            for k in range(WARM_UP_STEPS):
                step(first + k + 1)
            self.stream.synchronize()
            with torch._dynamo.config.patch(error_on_recompile=True):
                self.graphs = self._capture(step, steps)
        self.replay(0)

    def _capture(self, step: Callable[[int], None], steps: int) -> list[torch.cuda.CUDAGraph]:
        pool = torch.cuda.graph_pool_handle()  # one for all: they run in the order of capture
        graphs = []
        for k in range(steps):
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=pool)
            try:
                step(self.first + k + 1)
            finally:
                graph.capture_end()
            graphs.append(graph)
        return graphs

    def replay(self, token: int, each: bool = False) -> tuple[list[float], list[int]]:
        """All steps after `token`: (milliseconds, tokens). The time of each step, or, without
        events between the steps, of all together."""
        steps = len(self.graphs)
        events = [torch.cuda.Event(enable_timing=True) for _ in range(steps + 1)]
        with torch.cuda.stream(self.stream):
            self.decode.start(token, self.first)
            self.stream.synchronize()
            events[0].record()
            for graph, event in zip(self.graphs, events[1:], strict=True):
                graph.replay()
                if each or event is events[-1]:
                    event.record()
            self.stream.synchronize()
        ends = events if each else [events[0], events[-1]]
        times = [a.elapsed_time(b) for a, b in zip(ends, ends[1:], strict=False)]
        return times, self.decode.tokens[self.first + 1:self.first + 1 + steps].tolist()

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """Logits of every step when it is fed these tokens: [steps, vocab] float32."""
        rows = []
        with torch.cuda.stream(self.stream):
            for k, (graph, token) in enumerate(zip(self.graphs, tokens, strict=True)):
                self.decode.start(token, self.first + k)
                graph.replay()
                rows.append(self.decode.logits[0].float())
            self.stream.synchronize()
        return torch.stack(rows)
