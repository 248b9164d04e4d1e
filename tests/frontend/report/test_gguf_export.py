"""The same weights in llama.cpp: its greedy tokens are transformers'; the rest is refused."""

from pathlib import Path

import numpy as np
import pytest

from event_tensor.errors import UserError
from frontend.families.decoder import required_tensors
from frontend.families.read_config import read_config
from frontend.report.bench.baselines.engine import GREEDY, SAMPLED, Work
from frontend.report.bench.baselines.process import BaselineProcess
from frontend.report.bench.gguf_export import export_gguf, gguf_name
from frontend.report.reference import generate_timed, load_transformers

gguf = pytest.importorskip("gguf", reason="the extra `bench` is not installed")
PROMPT = list(range(5, 30))
NEW_TOKENS = 24
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
MODELS = {
    "llama": ("llama", {}), "qwen3": ("qwen3", {}), "qwen2": ("qwen2", {"head_dim": 18}),
    "tied": ("mistral", {"tie_word_embeddings": True, "sliding_window": None}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3 rope": ("llama", {"rope_scaling": LLAMA3}),
    "linear rope": ("qwen3", {"rope_scaling": {"rope_type": "linear", "factor": 3.0}})}


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_makes_the_tokens_of_transformers(tiny_model, tmp_path, name):
    pytest.importorskip("llama_cpp", reason="the extra `bench` is not installed")
    family, fields = MODELS[name]
    directory, path = tiny_model(family, **fields), tmp_path / "model.gguf"
    work = Work("llama-cpp", str(path), "float32", 1, "cpu", PROMPT[:7], PROMPT[7:], NEW_TOKENS,
                sampled=True, seed=3)
    export_gguf(directory, path, "float32", work.capacity)
    expected, _, _ = generate_timed(load_transformers(directory, "float32"), PROMPT, NEW_TOKENS)
    with BaselineProcess(work) as process:
        assert process.run(GREEDY)["output_ids"] == expected
        drawn = process.run(SAMPLED)["output_ids"]
        assert drawn == process.run(SAMPLED)["output_ids"] != expected
        process.save_logits(expected, tmp_path / "logits.npy")
    logits = np.load(tmp_path / "logits.npy")
    assert logits.argmax(-1).tolist() == expected


def test_matrices_keep_their_dtype_and_every_tensor_is_there(tiny_model, tmp_path):
    directory, path = tiny_model("qwen3", dtype="bfloat16"), tmp_path / "model.gguf"
    export_gguf(directory, path, "bfloat16", 64)
    reader = gguf.GGUFReader(path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert set(found) == {gguf_name(name) for name in required_tensors(read_config(directory))}
    assert found["blk.1.ffn_down.weight"].tensor_type == gguf.GGMLQuantizationType.BF16
    assert found["blk.1.ffn_down.weight"].shape.tolist() == [136, 72]  # GGUF's order
    assert found["blk.0.attn_q_norm.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    assert reader.get_field("qwen3.vocab_size").contents() == 307


@pytest.mark.parametrize(("family", "fields", "word"), [
    ("qwen3_moe", {}, "qwen3_moe models; supported are llama, mistral, qwen2, qwen3"),
    ("mistral", {"sliding_window": 8}, "a sliding window shorter than the 64 tokens"),
    ("qwen3", {"rope_scaling": LLAMA3}, "rope type llama3 of a qwen3 model"),
    ("qwen3", {"attention_bias": True}, "attention_bias of a qwen3 model"),
    ("qwen2", {}, "heads that together are not hidden_size of a qwen2 model")])
def test_what_llama_cpp_cannot_run_is_refused_by_name(tiny_model, tmp_path, family, fields, word):
    path: Path = tmp_path / "model.gguf"
    with pytest.raises(UserError, match=word):
        export_gguf(tiny_model(family, **fields), path, "float32", 64)
    assert not path.exists()
