"""The graph of a mixture-of-experts decoder means the model: its calls one after another, tile by
tile in any order, give transformers' logits. No event, schedule or worker takes part."""

from typing import Any

import numpy as np
import pytest
import torch
from checked import check_tensors, open_checkpoint
from test_moe_exact_tokens import MODELS, load_reference

from event_tensor.graph import Call
from frontend.config.decoder_config import DecoderConfig
from frontend.families.decoder import build_step
from frontend.families.read_config import read_config
from frontend.graph.operators import Limits, Operators
from frontend.graph.rope_tables import rope_tables
from frontend.graph.tiles import choose_tiles
from frontend.model_files.expert_weights import read_weight
from persistent_runtime.cpu.single_tile import run_tile
from persistent_runtime.launch.memory import allocate
from scheduling.target import H200

CONTEXT = 128


class Program:
    """Memory for one step of a model directory, and its calls."""

    def __init__(self, directory, tokens: int) -> None:
        self.config: DecoderConfig = read_config(directory)
        tiles = choose_tiles(self.config, H200.with_workers(3), "float32")
        self.operators = Operators(self.config, tiles, Limits(1, CONTEXT, CONTEXT, 1), "float32")
        build_step(self.operators)
        self.bindings = {"tokens": tokens, "logit_rows": tokens, "context": tokens, "kv_splits": 1}
        self.memory = {
            spec.name: allocate(tuple(int(d.evaluate(self.bindings)) for d in spec.shape),
                                spec.dtype) for spec in self.operators.graph.tensors()}
        with open_checkpoint(directory) as checkpoint:
            check_tensors(checkpoint, self.config)
            for name in self.operators.weights:
                shape = self.memory[name].shape
                self.memory[name][:] = read_weight(checkpoint, name, shape, "float32")
        cos, sin = rope_tables(self.config.layers[0].rope, self.config.head_dim, CONTEXT)
        self.memory["rope_cos"][:], self.memory["rope_sin"][:] = cos, sin
        for name, tensor in self.memory.items():  # what no tile writes must not matter
            if name in ("grouped", "expert_inner", "expert_out"):
                tensor[:] = np.nan

    def logits(self, ids: list[int], rng: np.random.Generator) -> np.ndarray:
        count = len(ids)
        self.memory["token_ids"][0, :count] = ids
        self.memory["row_position"][:count] = np.arange(count)
        self.memory["logit_row"][:count] = np.arange(count)
        self.memory["finished"][0] = 1
        for call in self.operators.graph.calls:
            if call.function.name != "select_token":
                self._run(call, rng)
        return self.memory["logits"]

    def _run(self, call: Call, rng: np.random.Generator) -> None:
        values: dict[str, Any] = {
            operand.name: self.memory[tensor.name] for operand, tensor in call.accesses()}
        values |= {name: v if isinstance(v, float) else int(v.evaluate(self.bindings))
                   for name, v in call.parameters.items()}
        scratch = int(call.function.scratch_bytes.substitute(call.sizes).evaluate(self.bindings))
        grid = [int(n.evaluate(self.bindings)) for n in call.tile_num]
        if call.function.name.startswith("expert_"):
            grid[0] = int(self.memory[f"{call.name.rpartition('.')[0]}.tile_indptr"][-1])
        tiles = list(np.ndindex(*grid))
        for tile in rng.permutation(len(tiles)):
            run_tile(call.function, "float32", values, tiles[tile], scratch)


@pytest.mark.parametrize("tokens", [1, 37])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_program_order_gives_the_logits_of_transformers(tiny_model, name, tokens):
    family, fields = MODELS[name]
    directory = tiny_model(family, seed=len(name), **fields)
    model = load_reference(directory, dtype=torch.float32)
    rng = np.random.default_rng(tokens)
    ids = rng.integers(0, model.config.vocab_size, tokens).tolist()
    expected = model(torch.tensor([ids])).logits[0].numpy()
    logits = Program(directory, tokens).logits(ids, rng)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
