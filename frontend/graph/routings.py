"""Sample routings for the proofs: what `select_experts` could leave behind in a step.

Data-dependent edges are proved for sample values. These take the extremes: every expert loaded
alike, the same experts for every row, and a load that falls off from expert to expert.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from frontend.config.decoder_config import DecoderConfig
from frontend.config.experts import ExpertConfig
from frontend.graph.tiles import EXPERT_ROWS
from persistent_runtime.functions.experts import expert_tiles

SAMPLES = 3
Runtime = dict[str, npt.NDArray[np.int32]]


def sample_routings(config: DecoderConfig, bindings: Mapping[str, int]) -> list[Runtime]:
    """Tensor name → values, one dictionary per sample; one empty dictionary for a dense model.

    Sparse layers of one sample differ: neighbours are shifted by one expert.
    """
    choices = {experts: _sample_choices(experts, bindings["tokens"])
               for layer in config.layers if (experts := layer.experts)}
    if not choices:
        return [{}]
    return [{name: values
             for layer, of_layer in enumerate(config.layers) if (experts := of_layer.experts)
             for name, values in layer_routing(
                 f"model.layers.{layer}.mlp", (choices[experts][sample] + layer)
                 % experts.num_experts, experts.num_experts, EXPERT_ROWS).items()}
            for sample in range(SAMPLES)]


def _sample_choices(experts: ExpertConfig, tokens: int) -> list[npt.NDArray[np.int64]]:
    """The experts of each row, [tokens, top_k], in each of SAMPLES samples."""
    count, top_k = experts.num_experts, experts.top_k
    row, choice = np.indices((tokens, top_k))
    skewed = np.random.default_rng(0).geometric(0.3, (tokens, count)).cumsum(axis=1) % count
    return [(row * top_k + choice) % count,  # one after another: uniform
            choice,
            _first_distinct(skewed, top_k, count)]


def layer_routing(name: str, ids: npt.NDArray[np.int64], num_experts: int, tile_m: int) -> Runtime:
    """What `select_experts` makes of these choices: [tokens, top_k], distinct within a row."""
    tokens, top_k = ids.shape
    tiles = int(expert_tiles(tokens, top_k, num_experts, tile_m).evaluate({}))
    counts = np.bincount(ids.ravel(), minlength=num_experts)
    tiles_of = -(-counts // tile_m)
    tile_indptr = np.concatenate([[0], np.cumsum(tiles_of)])
    tile_expert = np.full(tiles, -1)
    tile_expert[:tile_indptr[-1]] = np.repeat(np.arange(num_experts), tiles_of)

    by_expert = np.argsort(ids.ravel(), kind="stable")  # expert by expert, rows in token order
    expert = ids.ravel()[by_expert]
    first = np.cumsum(counts) - counts
    slot = tile_indptr[expert] * tile_m + np.arange(tokens * top_k) - first[expert]
    place = np.empty(tokens * top_k, np.int64)
    place[by_expert] = slot
    tile_rows = np.full(tiles * tile_m, -1)
    tile_rows[slot] = by_expert // top_k
    values = {"topk_ids": ids, "place": place.reshape(tokens, top_k), "counts": counts,
              "tile_indptr": tile_indptr, "tile_expert": tile_expert,
              "tile_rows": tile_rows.reshape(tiles, tile_m)}
    return {f"{name}.{part}": np.ascontiguousarray(value, np.int32)
            for part, value in values.items()}


def _first_distinct(candidates: npt.NDArray[np.int64], top_k: int, num_experts: int
                    ) -> npt.NDArray[np.int64]:
    """The first top_k different experts of each row, filled up with those not named."""
    everyone = np.arange(num_experts)
    return np.array([list(dict.fromkeys([*row, *everyone]))[:top_k] for row in candidates])
