"""Tile sizes from the Target record and the shape: data in, data out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from frontend.config.decoder_config import DecoderConfig
from persistent_runtime.formats import stored_bytes
from scheduling.target import Target

# rows of a linear tile: a whole prefill chunk reuses the weights it loads
LINEAR_ROWS = 256
SPARSE_LINEAR_ROWS = 64  # where experts make a schedule of every number of rows
ATTENTION_ROWS = 16
EXPERT_ROWS = 16  # slots of a tile of one expert: a decode step fills one of them, a chunk several
MAX_KV_SPLITS = 16


@dataclass(frozen=True, slots=True)
class ExpertTiles:
    """Slots of an expert's tile, and output columns of the router and of an expert's linears."""

    rows: int
    router: int
    gate_up: int
    down: int


@dataclass(frozen=True, slots=True)
class TileConfig:
    """Rows of the tiles of linears and of attention, and output columns of each linear."""

    linear_rows: int
    attention_rows: int
    q: int
    kv: int
    output: int
    gate_up: int
    down: int
    lm_head: int
    experts: ExpertTiles | None = None  # None where every layer is dense


def choose_tiles(config: DecoderConfig, target: Target, dtype: str) -> TileConfig:
    """dtype: the format of the matrices."""
    hidden, inner = config.hidden_size, config.intermediate_size
    group_width = config.num_heads // config.num_kv_heads * config.head_dim
    q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim

    def columns(out_features: int, in_features: int, aligned_to: int = 1, copies: int = 1) -> int:
        """As many tiles as fill all workers the same number of times, none too large.

        copies: how many such linears a step runs side by side.
        """
        share_bytes = copies * stored_bytes((out_features, in_features), dtype) / target.workers
        rounds = max(target.tiles_per_worker, math.ceil(share_bytes / target.tile_bytes))
        wanted = math.ceil(copies * out_features / (rounds * target.workers))
        multiple = target.tile_columns
        return align(math.ceil(wanted / multiple) * multiple, aligned_to, out_features)

    experts = None
    if config.experts:
        # those of one token: a decode step runs no others
        active, width = config.experts.top_k, config.experts.intermediate_size
        experts = ExpertTiles(
            EXPERT_ROWS, router=columns(config.experts.num_experts, hidden),
            gate_up=columns(width, 2 * hidden, copies=active),
            down=columns(hidden, width, copies=active))
    q, kv = columns(q_width, hidden, group_width), columns(kv_width, hidden, config.head_dim)
    if target.tiles_per_worker == 1:  # the three run side by side: one round of all their tiles
        q = kv = columns(q_width + 2 * kv_width, hidden)
    return TileConfig(
        SPARSE_LINEAR_ROWS if experts else LINEAR_ROWS, ATTENTION_ROWS, q=q, kv=kv,
        output=columns(hidden, q_width), gate_up=columns(inner, 2 * hidden),
        down=columns(hidden, inner), lm_head=columns(config.vocab_size, hidden),
        experts=experts)


def align(columns: int, to: int, limit: int) -> int:
    """A whole multiple of `to`, or a divisor of it: tiles of neighbours then fit each other."""
    if columns >= limit:
        return limit
    if columns >= to:
        return columns // to * to
    return max(d for d in range(1, to + 1) if to % d == 0 and d <= max(columns, 1))


def choose_kv_splits(config: DecoderConfig, target: Target, tokens: int, context: int) -> int:
    """Enough splits of the context that every worker has attention to do, none too short."""
    row_tiles = -(-tokens // ATTENTION_ROWS)
    if row_tiles > 1:  # memory for partial results is held for one tile of rows
        return 1
    wanted = -(-2 * target.workers // config.num_kv_heads)
    if config.num_kv_heads >= target.workers:
        wanted = 1
    return max(1, min(wanted, -(-context // target.split_positions), MAX_KV_SPLITS))
