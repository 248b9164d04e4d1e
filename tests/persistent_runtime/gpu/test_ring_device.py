"""Weights through the ring on a real device: the tokens of the worker without it, and every end."""


import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from benchmarks.gpu.compile import ring
from persistent_runtime.rows import layout

pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(not torch.cuda.is_available() or
                                 torch.cuda.get_device_capability() < (9, 0),
                                 reason="the ring needs a GPU of compute capability 9.0")]

PROMPT, NEW_TOKENS, PIECES = list(range(3, 90)), 150, 8
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64}
# rows of a half, one and two lines, of a line and a half, of two to seven lines; bias; a window;
# qwen2's down projections have rows of 35 quarter lines, so those stay out of the ring
MODELS = {
    "llama": {"hidden_size": 2048, "intermediate_size": 8192, "attention_bias": True} | HEADS,
    "qwen2": {"hidden_size": 1536, "intermediate_size": 8960, "num_attention_heads": 12,
              "num_key_value_heads": 2, "head_dim": 128},
    "qwen3": {"hidden_size": 1024, "intermediate_size": 3072} | HEADS,
    "mistral": {"hidden_size": 4096, "intermediate_size": 14336, "sliding_window": 40,
                "num_hidden_layers": 1} | HEADS,
}


def decoder_with(directory, pieces, **options):
    from frontend.compile import compile_decode_loop

    with ring(pieces):
        return compile_decode_loop(directory, backend="cuda", max_context=256, max_requests=2,
                                   **options)


@pytest.fixture(scope="module", params=[("qwen3", "bfloat16"), ("llama", "bfloat16"),
                                        ("qwen2", "bfloat16"), ("mistral", "bfloat16"),
                                        ("qwen3", "float16")], ids=lambda case: "-".join(case))
def decoders(request, tiny_model):
    """(with the ring, without it) for one model."""
    family, dtype = request.param
    directory = tiny_model(family, seed=1, dtype=dtype, initializer_range=0.02, **MODELS[family])
    return decoder_with(directory, PIECES), decoder_with(directory, 0)


def test_tokens_are_those_of_the_worker_without_a_ring(decoders):
    with_ring, without = decoders
    expected = without.generate(PROMPT, max_new_tokens=NEW_TOKENS, ignore_eos=True).output_ids
    assert len(with_ring.kernel.schedule(with_ring.bindings(1, 1, 1)).of_backend[layout.STREAM])
    assert not without.kernel.schedule(without.bindings(1, 1, 1)).of_backend
    for _ in range(3):
        result = with_ring.generate(PROMPT, max_new_tokens=NEW_TOKENS, ignore_eos=True,
                                    trace_steps=2)
        assert result.output_ids == expected
    assert (result.trace[-1].worker >= 0).all()


def test_logits_are_close(decoders):
    ids = PROMPT[:17]  # the last comes alone, in a launch of its own
    found, expected = (decoder.logits(ids, last=1) for decoder in decoders)
    assert np.abs(found - expected).max() <= 2e-4 * np.abs(expected).max()


def test_a_batch_and_a_short_prompt_do_without_or_begin_with_the_ring(decoders):
    with_ring, without = decoders
    prompts = [PROMPT, PROMPT[:11]]
    for given in (prompts, [5]):
        found, expected = (decoder.generate(given, max_new_tokens=8, ignore_eos=True)
                           for decoder in decoders)
        if given is not prompts:
            found, expected = [found], [expected]
        assert [f.output_ids for f in found] == [e.output_ids for e in expected]


def test_every_end_leaves_nothing_on_its_way(decoders):
    decoder = decoders[0]
    expected = decoder.generate(PROMPT, max_new_tokens=5, ignore_eos=True).output_ids
    for _ in range(20):
        for k, _token in enumerate(decoder.stream(PROMPT, max_new_tokens=150, ignore_eos=True)):
            if k == 3:
                break
        assert decoder.generate(PROMPT, max_new_tokens=5, ignore_eos=True).output_ids == expected


def test_a_missing_notify_ends_in_a_deadlock_error(tiny_model):
    from event_tensor.errors import DeadlockError

    decoder = decoder_with(tiny_model("qwen3", seed=1, dtype="bfloat16", initializer_range=0.02,
                                      **MODELS["qwen3"]), PIECES)
    encoded = decoder.kernel.schedule(decoder.bindings(1, 1, 1))
    row = next(r for r in encoded.rows if r[layout.NOTIFY_END] > r[layout.NOTIFY_BEGIN])
    row[layout.NOTIFY_END] = row[layout.NOTIFY_BEGIN]
    segment = decoder.kernel.segment(decoder.bindings(1, 1, 1), decoder._buffers)
    with pytest.raises(DeadlockError, match="made no progress.*waits on"):
        decoder.kernel.launch([segment], timeout_s=1.0).wait()
    assert decoder.kernel.kernel.resources()["spill_bytes"] == 0
