"""A model directory as one GGUF file, so that llama.cpp runs the very same weights.

Names and metadata are those of llama.cpp's `convert_hf_to_gguf.py`; the vocabulary has a size but
no texts, for benchmarks feed token ids.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from event_tensor.errors import UserError
from frontend.config.decoder_config import DecoderConfig
from frontend.config.rope import RopeConfig
from frontend.families.decoder import required_tensors
from frontend.families.read_config import read_config
from frontend.families.registry import families, family_named
from frontend.graph.check_tensors import check_tensors
from frontend.graph.rope_tables import inverse_frequencies
from frontend.model_files.checkpoint import open_checkpoint
from persistent_runtime.formats import FLOAT32, format_of
from persistent_runtime.storage import converted

GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down"}


def export_gguf(directory: Path, path: Path, dtype: str, context: int) -> None:
    """Writes the weights of `directory` in `dtype`, vectors (norms, biases) in float32.

    context: positions that will be used; a sliding window as long changes nothing and is left out.
    Raises UserError for what the two formats do not share.
    """
    import gguf

    config = read_config(directory)
    check_expressible(config, context)
    writer = gguf.GGUFWriter(path, architecture_of(config))
    add_metadata(writer, config)
    tensor_name = family_named(config.family).tensor_name
    with open_checkpoint(directory, tensor_name) as checkpoint:
        required = required_tensors(config)
        check_tensors(checkpoint, required, config.family)
        for name in required:
            tensor = in_gguf_order(config, name, checkpoint.read(name))
            # llama.cpp multiplies and adds vectors in float32 only
            wanted = FLOAT32 if tensor.ndim == 1 else format_of(dtype)
            elements = converted(tensor, checkpoint.dtype(name), wanted.name)
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(elements).view(np.uint8),
                              raw_dtype=gguf.GGMLQuantizationType[wanted.tag])
        if rope_of(config).rope_type == "llama3":
            writer.add_tensor("rope_freqs.weight", frequency_divisors(config))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    writer.close()


def check_expressible(config: DecoderConfig, context: int) -> None:
    family, architecture = config.family, architecture_of(config)
    if any(layer.window is not None and layer.window < context for layer in config.layers):
        raise refusal(f"a sliding window shorter than the {context} tokens of the benchmark; "
                      f"measure fewer")
    without = f"of a {family} model, which llama.cpp does not know; leave it out of --compare"
    if rope_of(config).rope_type == "llama3" and architecture != "llama":
        raise refusal(f"rope type llama3 {without}")
    if config.num_heads * config.head_dim != config.hidden_size and architecture == "qwen2":
        raise refusal(f"heads that together are not hidden_size {without}")
    if config.qkv_bias and architecture == "qwen3":
        raise refusal(f"attention_bias {without}")


def architecture_of(config: DecoderConfig) -> str:
    """llama.cpp's name for the decoder; UserError where it has none."""
    architecture = family_named(config.family).gguf_architecture
    if architecture is None:
        known = sorted(name for name, family in families().items() if family.gguf_architecture)
        raise refusal(f"{config.family} models; supported are {', '.join(known)}")
    return architecture


def rope_of(config: DecoderConfig) -> RopeConfig:
    """That of all layers; UserError where they rotate differently, which the format cannot say."""
    if len(config.ropes) > 1:
        raise refusal("layers that rotate differently")
    return config.ropes[0]


def refusal(what: str) -> UserError:
    return UserError(f"--compare llama-cpp does not support {what}")


def add_metadata(writer: Any, config: DecoderConfig) -> None:
    import gguf

    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    rope = rope_of(config)
    writer.add_rope_freq_base(rope.theta)
    if rope.rope_type == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.factor)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config.vocab_size)


def gguf_name(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight → blk.3.ffn_up.weight"""
    module, _, last = name.rpartition(".")
    if not module.startswith("model.layers."):
        return f"{GGUF_NAMES[module]}.{last}"
    layer, _, part = module.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{GGUF_NAMES[part]}.{last}"


def in_gguf_order(config: DecoderConfig, name: str, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """llama.cpp's llama rotates neighbouring elements of a head, transformers' the two halves:
    rows of q and k, [heads * head_dim, ...], are reordered. Its qwen2 and qwen3 rotate halves."""
    module = name.split(".")[-2]
    if architecture_of(config) != "llama" or module not in ("q_proj", "k_proj"):
        return tensor
    halves = tensor.reshape(-1, 2, config.head_dim // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def frequency_divisors(config: DecoderConfig) -> npt.NDArray[np.float32]:
    """By what llama3 scaling divides each frequency: [head_dim / 2]"""
    rope = rope_of(config)
    plain = inverse_frequencies(replace(rope, rope_type="default"), config.head_dim)
    return (plain / inverse_frequencies(rope, config.head_dim)).float().numpy()
