import numpy as np
import pytest
import torch

from frontend.families.read_config import parse_config
from frontend.graph.rope_tables import inverse_frequencies, rope_tables

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
ROPES = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "theta": {"rope_type": "default", "rope_theta": 1000000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
    "llama3": LLAMA3,
    "llama3-32": LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
}


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Mistral"])
@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("head_dim", [16, 128])
def test_tables_equal_those_of_transformers(family: str, rope: str, head_dim: int) -> None:
    import transformers
    from transformers.models import llama, mistral, qwen2, qwen3

    modules = {
        "Llama": llama.modeling_llama.LlamaRotaryEmbedding,
        "Qwen2": qwen2.modeling_qwen2.Qwen2RotaryEmbedding,
        "Qwen3": qwen3.modeling_qwen3.Qwen3RotaryEmbedding,
        "Mistral": mistral.modeling_mistral.MistralRotaryEmbedding,
    }
    theirs = getattr(transformers, f"{family}Config")(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        rope_parameters=dict(ROPES[rope]),
        max_position_embeddings=16384,
    )
    config = parse_config(theirs.to_dict(), None)
    module = modules[family](theirs)
    positions = torch.arange(1000)[None]
    expected_cos, expected_sin = module(torch.zeros(1), positions)

    assert torch.equal(inverse_frequencies(config.layers[0].rope, head_dim), module.inv_freq)
    cos, sin = rope_tables(config.layers[0].rope, head_dim, max_context=1000)
    assert cos.dtype == sin.dtype == np.float32
    assert cos.shape == sin.shape == (1000, head_dim // 2)
    # Vectorised and scalar cos may differ in the last bit; the width of a row decides.
    for ours, theirs_twice in ((cos, expected_cos), (sin, expected_sin)):
        expected = theirs_twice[0, :, : head_dim // 2].numpy()
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1.2e-7)


def test_llama3_slows_only_slow_rotations() -> None:
    fields = {
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "vocab_size": 8,
    }
    plain = parse_config(fields | {"rope_theta": 500000.0}, None)
    scaled = parse_config(fields | {"rope_parameters": LLAMA3}, None)
    ratio = inverse_frequencies(*plain.ropes, 64) / inverse_frequencies(*scaled.ropes, 64)
    assert ratio[0] == 1
    assert torch.isclose(ratio[-1], torch.tensor(8.0))
    assert bool((ratio.diff() > -1e-5).all())
