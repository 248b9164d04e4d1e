"""Models whose tensors have different formats: float32 norms beside 16-bit matrices, and a KV cache
in a format of its own. Tokens are those of the same values in float32."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop
from persistent_runtime.cpu.vectors.emit import CONVERTS_FLOAT16

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]  # fewer rows than a CPU rounds to bfloat16
FAMILIES = {"qwen3": {"num_attention_heads": 8, "head_dim": 24},
            "qwen2": {"tie_word_embeddings": True}, "qwen3_moe": {}}


@pytest.fixture(scope="module")
def mixed(tiny_model, tmp_path_factory):
    """`mixed(family)`: a copy of a bfloat16 model with norms and biases of full precision."""

    def make(family, dtype="bfloat16"):
        source = tiny_model(family, dtype=dtype, seed=2, **FAMILIES[family])
        directory = tmp_path_factory.mktemp(family)
        for file in source.iterdir():
            if file.is_file():
                (directory / file.name).write_bytes(file.read_bytes())
        random = torch.Generator().manual_seed(1)
        tensors = {name: tensor if tensor.ndim > 1 else
                   tensor.float() + 0.3 * torch.randn(tensor.shape, generator=random)
                   for name, tensor in load_file(source / "model.safetensors").items()}
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        return directory

    return make


def expected_tokens(directory, count):
    """Of the stored values, all computed in float32."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager").eval()
    found = model.generate(torch.tensor([PROMPT]), max_new_tokens=count, do_sample=False,
                           eos_token_id=None, pad_token_id=0)
    return found[0, len(PROMPT):].tolist()


def formats_of(decoder):
    return {len(spec.shape): set() for spec in decoder._operators.weights.values()} | {
        rank: {spec.dtype for spec in decoder._operators.weights.values()
               if len(spec.shape) == rank} for rank in (1, 2)}


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_and_biases_keep_their_precision(mixed, family):
    directory = mixed(family)
    decoder = compile_decode_loop(directory, workers=2, kv_dtype="float32")
    assert decoder.dtype == "bfloat16" and decoder.kv_dtype == "float32"
    assert formats_of(decoder)[1] == {"float32"} and formats_of(decoder)[2] == {"bfloat16"}
    assert decoder.generate(PROMPT, max_new_tokens=24, ignore_eos=True
                            ).output_ids == expected_tokens(directory, 24)


def test_matrices_of_another_dtype_leave_norms_alone(mixed):
    directory = mixed("qwen3")
    half = compile_decode_loop(directory, dtype="float16" if CONVERTS_FLOAT16 else "bfloat16")
    assert formats_of(half)[1] == {"float32"}
    wide = compile_decode_loop(directory, dtype="float32", workers=2)
    assert formats_of(wide)[1] == formats_of(wide)[2] == {"float32"}
    assert wide.generate(PROMPT, max_new_tokens=24, ignore_eos=True
                         ).output_ids == expected_tokens(directory, 24)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_of_one_dtype_is_kept_in_one(tiny_model, dtype):
    """Also where another dtype is asked for, its norms go with the matrices."""
    for wanted in ("auto", "bfloat16"):
        decoder = compile_decode_loop(tiny_model("qwen3", dtype=dtype, seed=2), dtype=wanted)
        kept = dtype if wanted == "auto" else wanted
        assert formats_of(decoder)[1] == formats_of(decoder)[2] == {kept}
        assert {spec.dtype for spec in decoder._operators.kv_caches.values()} == {kept}


def test_a_cache_of_16_bits_beside_float32(tiny_model):
    directory = tiny_model("qwen3", seed=2)
    wide = compile_decode_loop(directory, workers=2)
    for dtype in ("bfloat16", "float16") if CONVERTS_FLOAT16 else ("bfloat16",):
        narrow = compile_decode_loop(directory, workers=2, kv_dtype=dtype)
        assert 2 * narrow.memory_bytes()["kv_cache"] == wide.memory_bytes()["kv_cache"]
        assert narrow.memory_bytes()["weight"] == wide.memory_bytes()["weight"]
        logits = wide.logits(PROMPT)
        error = np.abs(narrow.logits(PROMPT) - logits).max() / np.abs(logits).max()
        assert 0 < error < (0.05 if dtype == "bfloat16" else 0.01)


def test_an_unknown_kv_dtype_is_refused(tiny_model):
    with pytest.raises(UserError, match="kv_dtype 'int4' is not supported; use auto, float32"):
        compile_decode_loop(tiny_model("qwen3", seed=2), kv_dtype="int4")


def test_the_option_of_the_command_line(command):
    shown = command("inspect", "demo", "--what", "kernel", "--kv-dtype", "float32", "--json")
    assert '"kv_dtype": "float32"' in shown.stdout
    ended = command("generate", "demo", "--prompt-ids", "1,2", "--kv-dtype", "int3")
    assert ended.returncode and "kv_dtype 'int3' is not supported" in ended.stderr
