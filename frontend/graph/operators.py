"""Named operators over a growing graph: what a model family is written in.

Each method adds one call and returns the tensor it writes. Activations are float32 and are
reused from layer to layer; `derive_events` orders the reuse.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from event_tensor.edges import span, trigger
from event_tensor.graph import Graph
from event_tensor.symbols import Expr, Symbol, ceil_div, minimum
from event_tensor.tensors import RUNTIME, EventTensor, TensorSpec
from frontend.config.decoder_config import DecoderConfig
from frontend.config.experts import ExpertConfig
from frontend.config.layers import LayerConfig
from frontend.config.rope import RopeConfig
from frontend.graph.control import Control, Limits, declare
from frontend.graph.tensor_groups import RopeTables, Routing
from frontend.graph.tiles import TileConfig
from persistent_runtime.formats import FLOAT32, row_bytes, stored_bytes
from persistent_runtime.functions import dense as device_functions
from persistent_runtime.functions import experts as moe_functions
from persistent_runtime.functions.activations import ACTIVATIONS

TOKENS = Symbol("tokens")  # rows of this step
LOGIT_ROWS = Symbol("logit_rows", at_least=0)  # rows whose next token is wanted
KV_SPLITS = Symbol("kv_splits")
CONTEXT = Symbol("context")  # longest context of the launch, for the cost model only


@dataclass(slots=True)
class Operators:
    """dtype: the format of matrices, and of vectors (norms, biases) that are not among
    float32_vectors. kv_dtype: that of the KV cache, `dtype` if it is "". rows_are_apart: that no
    row of a step sees another one of it; see `for_decoding`."""

    config: DecoderConfig
    tiles: TileConfig
    limits: Limits
    dtype: str
    kv_dtype: str = ""
    float32_vectors: frozenset[str] = frozenset()
    rows_are_apart: bool = False
    graph: Graph = field(default_factory=lambda: Graph("prefill_step"))
    weights: dict[str, TensorSpec] = field(default_factory=dict)
    kv_caches: dict[str, TensorSpec] = field(default_factory=dict)
    tensors: dict[str, TensorSpec] = field(default_factory=dict)
    ropes: dict[RopeConfig, RopeTables] = field(default_factory=dict)
    # Of weights that a step of one token does not read whole: how many of their rows it reads.
    read_rows: dict[str, int] = field(default_factory=dict)
    control: Control[TensorSpec] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.kv_dtype = self.kv_dtype or self.dtype
        # those of another Operators with the same tensors, if there is one
        self.control = declare(self.limits).each(
            lambda spec: self.tensors.setdefault(spec.name, spec))

    def for_decoding(self) -> Operators:
        """The same tensors, and another graph over them: of steps with one row of each request."""
        return replace(self, rows_are_apart=True, graph=Graph("decode_step"))

    def weight(self, name: str, *shape: int) -> TensorSpec:
        """A tensor of the checkpoint, under its checkpoint name."""
        dtype = FLOAT32.name if name in self.float32_vectors else self.dtype
        return self.weights.setdefault(name, TensorSpec(name, shape, dtype, "weight"))

    def activation(self, name: str, *shape: Expr | int, dtype: str = "float32") -> TensorSpec:
        return self.tensors.setdefault(name, TensorSpec(name, shape, dtype))

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every tensor of the checkpoint, in the order in which a step reads them.

        A linear layer's weight is [out_features, in_features]; those of experts are packed.
        """
        return {name: tuple(int(d.evaluate({})) for d in spec.shape)
                for name, spec in self.weights.items()}

    @property
    def active_weight_bytes(self) -> int:
        """Bytes of weights that a step of one token reads; of the embedding only one row unless
        it is also the LM head, and of the experts those that the token takes."""
        return sum(stored_bytes((self.read_rows.get(name, shape[0]), *shape[1:]),
                                self.weights[name].dtype)
                   for name, shape in self.weight_shapes.items())

    def embed_tokens(self, weight: TensorSpec) -> TensorSpec:
        """hidden: [tokens, hidden_size]"""
        self.read_rows[weight.name] = 1
        hidden = self.activation("hidden", TOKENS, self.config.hidden_size)
        self.graph.call_device(
            device_functions.embed_tokens, name="embed_tokens",
            args=[self.control.token_ids, *self._places, weight, hidden],
            parameters=self._rows(self.tiles.attention_rows) | {
                "hidden_size": self.config.hidden_size,
                "multiplier": self.config.embedding_multiplier})
        return hidden

    def norm_linear(self, name: str, x: TensorSpec, norm: TensorSpec, weight: TensorSpec,
                    bias: TensorSpec | None, tile_n: int) -> TensorSpec:
        """rms_norm(x) @ weight.T + bias: [tokens, out_features]"""
        out = self.activation(name.rpartition(".")[2], TOKENS, weight.shape[0])
        self.graph.call_device(
            device_functions.norm_linear, name=name, args=[x, norm, weight, bias, out],
            parameters=self._linear(weight, tile_n) | self._norm())
        return out

    def linear_residual(self, name: str, x: TensorSpec, weight: TensorSpec,
                        bias: TensorSpec | None, residual: TensorSpec, tile_n: int) -> TensorSpec:
        """residual += (x @ weight.T + bias) * residual_multiplier, in place"""
        self.graph.call_device(
            device_functions.linear_residual, name=name, args=[x, weight, bias, residual],
            parameters=self._linear(weight, tile_n) | {
                "multiplier": self.config.residual_multiplier})
        return residual

    def norm_gate_up(self, name: str, x: TensorSpec, norm: TensorSpec, gate: TensorSpec,
                          up: TensorSpec, gate_bias: TensorSpec | None,
                          up_bias: TensorSpec | None) -> TensorSpec:
        """activation(rms_norm(x) @ gate.T) * (rms_norm(x) @ up.T): [tokens, intermediate_size]"""
        out = self.activation("gate_up", TOKENS, gate.shape[0])
        self.graph.call_device(
            device_functions.norm_gate_up, name=name,
            args=[x, norm, gate, up, gate_bias, up_bias, out],
            parameters=self._linear(gate, self.tiles.gate_up) | self._norm() | self._gate())
        return out

    def moe_block(self, name: str, x: TensorSpec, norm: TensorSpec, router: TensorSpec,
                  gate_up: TensorSpec, down: TensorSpec, experts: ExpertConfig) -> TensorSpec:
        """x += what its experts make of each row of rms_norm(x), weighted, in place.

        router: [num_experts, hidden_size]; gate_up: [num_experts, 2 * inner, hidden_size], gate
        first; down: [num_experts, hidden_size, inner]. Events per expert, per tile of slots and
        per row: an expert starts when its own rows are there (paper, figure 5).
        """
        tiles, num_tiles = self.tiles.experts, self._expert_tiles(experts)
        assert tiles is not None
        self.read_rows |= {gate_up.name: experts.top_k, down.name: experts.top_k}
        hidden, inner_width, top_k = self.config.hidden_size, down.shape[2], experts.top_k
        logits = self.norm_linear(f"{name}.router_logits", x, norm, router, None, tiles.router)
        slots = num_tiles * tiles.rows
        grouped = self.activation("grouped", slots, hidden)
        inner = self.activation("expert_inner", slots, inner_width)
        out = self.activation("expert_out", slots, hidden)
        r = self._routing(name, experts)
        routed = EventTensor((), name=f"E_{name}.routed")
        expert = EventTensor((experts.num_experts,), RUNTIME, f"E_{name}.expert", r.counts)
        tile = EventTensor((num_tiles,), name=f"E_{name}.tile")
        row = EventTensor((TOKENS,), top_k * ceil_div(hidden, tiles.down), f"E_{name}.row")
        self.graph.call_device(
            moe_functions.select_experts, name=f"{name}.select_experts", tile_num=(1,),
            args=[logits, r.topk_ids, r.topk_weights, r.place, r.counts, r.tile_indptr,
                  r.tile_expert, r.tile_rows],
            parameters={"tile_m": tiles.rows, "top_k": top_k, "num_experts": experts.num_experts,
                        "norm_topk": int(experts.norm_topk)},
            out_edges={routed: lambda i: ()})
        self.graph.call_device(
            moe_functions.group_rows, name=f"{name}.group_rows", tile_num=(TOKENS, top_k),
            args=[x, norm, r.topk_ids, r.place, grouped],
            parameters={"hidden_size": hidden} | self._norm(),
            in_edges={routed: lambda i, k: ()},
            out_edges={expert: lambda i, k: r.topk_ids[i, k]})
        self.graph.call_device(
            moe_functions.expert_gate_up, name=f"{name}.expert_gate_up",
            args=[grouped, gate_up, r.tile_expert, r.tile_rows, inner],
            parameters=self._expert_linear(gate_up, tiles.gate_up) | self._gate(),
            in_edges={expert: trigger(lambda e: span(r.tile_indptr[e], r.tile_indptr[e + 1]))},
            out_edges={tile: "tj->t"})
        self.graph.call_device(
            moe_functions.expert_down, name=f"{name}.expert_down",
            args=[inner, down, r.tile_expert, r.tile_rows, out],
            parameters=self._expert_linear(down, tiles.down),
            in_edges={tile: "tj->t"}, out_edges={row: lambda t, j: r.tile_rows[t]})
        self.graph.call_device(
            moe_functions.combine_experts, name=f"{name}.combine_experts",
            args=[r.topk_weights, r.place, out, x],
            parameters={"hidden_size": hidden, "top_k": top_k,
                        "multiplier": self.config.residual_multiplier},
            in_edges={row: "i->i"})
        return x

    def _expert_tiles(self, experts: ExpertConfig) -> Expr:
        """The most tiles of slots that any routing of a step's rows can need."""
        assert self.tiles.experts is not None
        return moe_functions.expert_tiles(TOKENS, experts.top_k, experts.num_experts,
                                          self.tiles.experts.rows)

    def _routing(self, name: str, experts: ExpertConfig) -> Routing:
        """Fresh for each layer: late readers of one layer's routing never meet the next one's."""
        num_tiles = self._expert_tiles(experts)
        assert self.tiles.experts is not None

        def choices(part: str, dtype: str = "int32") -> TensorSpec:
            return self.activation(f"{name}.{part}", TOKENS, experts.top_k, dtype=dtype)

        def integers(part: str, *shape: Expr | int) -> TensorSpec:
            return self.activation(f"{name}.{part}", *shape, dtype="int32")

        return Routing(
            choices("topk_ids"), choices("topk_weights", "float32"), choices("place"),
            integers("counts", experts.num_experts),
            integers("tile_indptr", experts.num_experts + 1),
            integers("tile_expert", num_tiles),
            integers("tile_rows", num_tiles, self.tiles.experts.rows))

    def kv_cache(self, name: str) -> TensorSpec:
        """[requests, kv_heads, max_context, head_dim]"""
        return self.kv_caches.setdefault(name, TensorSpec(
            name, (self.limits.max_requests, self.config.num_kv_heads, self.limits.max_context,
                   self.config.head_dim), self.kv_dtype, "kv_cache"))

    def rope_tables(self, rope: RopeConfig) -> RopeTables:
        """Those of one way of rotating: all layers that rotate alike share them."""
        if rope not in self.ropes:
            suffix = f".{len(self.ropes)}" if self.ropes else ""
            shape = self.limits.max_context, self.config.head_dim // 2
            self.ropes[rope] = RopeTables(*(
                TensorSpec(f"rope_{part}{suffix}", shape, "float32", "weight")
                for part in ("cos", "sin")))
        return self.ropes[rope]

    def attention(self, name: str, q: TensorSpec, k: TensorSpec, v: TensorSpec,
                  q_norm: TensorSpec | None, k_norm: TensorSpec | None, layer: LayerConfig
                  ) -> TensorSpec:
        """Appends rotated k, and v, to the layer's caches; softmax attention of each row's rotated
        q to its context, split over positions, then combined: [tokens, heads * head_dim]

        Where no row sees another one of the step, attention takes each row's own k and v as they
        are, and appending is nothing that anyone waits for.
        """
        heads, dim = self.config.num_heads, self.config.head_dim
        partial = self.activation("attention_partial", TOKENS, KV_SPLITS, heads * dim)
        stats = self.activation("attention_stats", TOKENS, KV_SPLITS, 2 * heads)
        out = self.activation("attention_out", TOKENS, heads * dim)
        caches = [self.kv_cache(f"{name}.{part}_cache") for part in "kv"]
        rope = self.rope_tables(layer.rope)
        tables = [rope.cos, rope.sin]
        rows = self._places

        def append() -> None:
            self.graph.call_device(
                device_functions.rope_append, name=f"{name}.rope_append",
                args=[k, v, k_norm, *tables, *rows, *caches],
                parameters=self._rows(self.tiles.attention_rows) | self._norm() | {
                    "head_dim": dim})

        if not self.rows_are_apart:
            append()
        own = [k, v] if self.rows_are_apart else [None, None]
        self.graph.call_device(
            device_functions.attention, name=f"{name}.attention",
            args=[q, *own, q_norm, k_norm, *tables, *caches, *rows, partial, stats],
            parameters=self._heads() | self._norm() | {
                "kv_splits": KV_SPLITS, "window": layer.window or 0,
                "scale": self.config.attention_scale, "kv_row_bytes": row_bytes(caches[0]),
                "context": CONTEXT})
        if self.rows_are_apart:
            append()
        self.graph.call_device(
            device_functions.attention_combine, name=f"{name}.attention_combine",
            args=[partial, stats, out], parameters=self._heads() | {"kv_splits": KV_SPLITS})
        return out

    def norm_lm_head(self, x: TensorSpec, norm: TensorSpec, weight: TensorSpec) -> TensorSpec:
        """Logits of the wanted rows: [logit_rows, vocab]; then the next token of each."""
        self.read_rows.pop(weight.name, None)  # an embedding that serves as head is read whole
        tile_n, vocab = self.tiles.lm_head, weight.shape[0]
        tiles = ceil_div(vocab, tile_n)
        logits = self.activation("logits", LOGIT_ROWS, vocab)
        tile_max = self.activation("tile_max", LOGIT_ROWS, tiles)
        tile_argmax = self.activation("tile_argmax", LOGIT_ROWS, tiles, dtype="int32")
        self.graph.call_device(
            device_functions.norm_lm_head, name="lm_head",
            args=[x, self.control.logit_row, norm, weight, logits, tile_max, tile_argmax],
            parameters=self._linear(weight, tile_n, LOGIT_ROWS) | self._norm())
        c = self.control
        self.graph.call_device(
            device_functions.select_token, name="select_token",
            args=[tile_max, tile_argmax, logits,
                  self.activation("scores", LOGIT_ROWS, 2, vocab),
                  c.sampling, c.seed, c.processors, c.biases, c.bias_prefixes,
                  c.logit_row, *self._places, c.token_ids, c.token_time, c.token_logprob,
                  c.stop_ids, c.length_limit, c.length, c.finished])
        return logits

    @property
    def _places(self) -> list[TensorSpec]:
        """Request and position of each row."""
        return [self.control.row_request, self.control.row_position]

    def _rows(self, tile_m: int, of: Expr = TOKENS) -> dict[str, Expr | int | float]:
        return {"tile_m": tile_m, "rows": minimum(of, tile_m)}

    def _linear(self, weight: TensorSpec, tile_n: int, of: Expr = TOKENS
                ) -> dict[str, Expr | int | float]:
        return self._rows(self.tiles.linear_rows, of) | {
            "tile_n": tile_n, "in_features": weight.shape[1], "row_bytes": row_bytes(weight)}

    def _norm(self) -> dict[str, Expr | int | float]:
        return {"eps": self.config.rms_norm_eps, "norm_offset": self.config.norm_offset}

    def _gate(self) -> dict[str, Expr | int | float]:
        return {"activation": ACTIVATIONS[self.config.activation]}

    def _expert_linear(self, weight: TensorSpec, tile_n: int) -> dict[str, Expr | int | float]:
        assert self.tiles.experts is not None
        return self._rows(self.tiles.experts.rows) | {
            "tile_n": tile_n, "in_features": weight.shape[2], "row_bytes": row_bytes(weight)}

    def _heads(self) -> dict[str, Expr | int | float]:
        group = self.config.num_heads // self.config.num_kv_heads
        return self._rows(self.tiles.attention_rows) | {
            "head_dim": self.config.head_dim, "group_heads": group,
            "group_width": group * self.config.head_dim}
