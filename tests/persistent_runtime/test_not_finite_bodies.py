"""Bodies that meet logits which are no numbers; test_gpu_interpreter.py runs this for Triton."""

import numpy as np
import pytest
from body_references import greedy_requests, normal, run_all

from persistent_runtime.functions import dense as df
from persistent_runtime.rows import layout


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_end_a_request_without_a_token(odd):
    """A weight that is none makes its tile's maximum NaN, wherever in the tile it stands."""
    rng = np.random.default_rng(4)
    hidden, vocab, tile_n = 8, 53, 20
    for place in (0, 19, 33, 52):
        weight = normal(rng, vocab, hidden)
        weight[place, 3] = odd
        tile_max, tile_argmax = np.zeros((1, 3), np.float32), np.zeros((1, 3), np.int32)
        logits = np.zeros((1, vocab), np.float32)
        run_all(df.norm_lm_head, "float32", {
            "x": np.ones((1, hidden), np.float32), "logit_row": np.zeros(1, np.int32),
            "norm_weight": np.ones(hidden, np.float32), "weight": weight, "logits": logits,
            "tile_max": tile_max, "tile_argmax": tile_argmax, "tile_m": 1, "tile_n": tile_n,
            "in_features": hidden, "row_bytes": 4 * hidden, "eps": 1e-6}, (1, 3))
        assert np.isnan(tile_max[0]).tolist() == [k == place // tile_n for k in range(3)]
        token_ids, length, finished = (np.zeros(16, np.int32).reshape(1, 16),
                                       np.array([8], np.int32), np.zeros(1, np.int32))
        run_all(df.select_token, "float32", greedy_requests(1, vocab) | {
            "logits": logits, "tile_max": tile_max, "tile_argmax": tile_argmax,
            "logit_row": np.zeros(1, np.int32), "row_request": np.zeros(1, np.int32),
            "row_position": np.array([7], np.int32), "token_ids": token_ids,
            "token_time": np.zeros((1, 16), np.int64), "stop_ids": np.array([-1], np.int32),
            "length_limit": np.array([16], np.int32), "length": length, "finished": finished,
        }, (1,), {layout.ROW_ADVANCE: 1})
        assert finished[0] == layout.NOT_FINITE
        assert length[0] == 8 and not token_ids.any()
