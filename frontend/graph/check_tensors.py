"""The tensors that a decoder reads, and whether a checkpoint holds them."""

from collections.abc import Mapping, Sequence

import numpy as np

from event_tensor.errors import UserError
from frontend.config.decoder_config import DecoderConfig
from frontend.model_files.checkpoint import Checkpoint
from frontend.model_files.expert_weights import packed_shapes, stored_tensors
from persistent_runtime.storage import as_tensor, converted

CHECK = "check that config.json and the weights belong together"


def required_tensors(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Name → shape of every tensor the decoder reads, in the order in which a step reads them.

    A linear layer's weight is [out_features, in_features]; those of experts are packed.
    """
    hidden, intermediate = config.hidden_size, config.intermediate_size
    q_features = config.num_heads * config.head_dim
    kv_features = config.num_kv_heads * config.head_dim
    linears = {
        "self_attn.q_proj": (q_features, hidden, config.qkv_bias),
        "self_attn.k_proj": (kv_features, hidden, config.qkv_bias),
        "self_attn.v_proj": (kv_features, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, q_features, config.output_bias),
    }
    mlp_linears = {
        "mlp.gate_proj": (intermediate, hidden, config.mlp_bias),
        "mlp.up_proj": (intermediate, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, intermediate, config.mlp_bias),
    }
    attention = {"input_layernorm.weight": (hidden,)} | linear_tensors(linears)
    if config.qk_norm:
        attention["self_attn.q_norm.weight"] = (config.head_dim,)
        attention["self_attn.k_norm.weight"] = (config.head_dim,)
    attention["post_attention_layernorm.weight"] = (hidden,)
    dense, sparse = linear_tensors(mlp_linears), dict[str, tuple[int, ...]]()
    if config.experts:
        count, inner = config.experts.num_experts, config.experts.intermediate_size
        sparse["mlp.gate.weight"] = (count, hidden)
        packed = packed_shapes(count, hidden, inner)
        sparse |= {f"mlp.experts.{name}": shape for name, shape in packed.items()}

    tensors: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for index in range(config.num_layers):
        layer = attention | (sparse if config.is_sparse(index) else dense)
        tensors |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    tensors["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = (config.vocab_size, hidden)
    return tensors


def linear_tensors(linears: Mapping[str, tuple[int, int, bool]]) -> dict[str, tuple[int, ...]]:
    """Weights and biases of linears given as (out_features, in_features, whether it has a bias)."""
    tensors: dict[str, tuple[int, ...]] = {}
    for name, (out_features, in_features, bias) in linears.items():
        tensors[f"{name}.weight"] = (out_features, in_features)
        if bias:
            tensors[f"{name}.bias"] = (out_features,)
    return tensors


def check_tensors(checkpoint: Checkpoint, config: DecoderConfig) -> None:
    """Raises UserError unless the checkpoint holds the decoder that config.json describes."""
    where = str(checkpoint.files[0].parent) if checkpoint.files else "the loaded model"
    required = stored_tensors(checkpoint, required_tensors(config))
    names = checkpoint.names()
    missing = [name for name in required if name not in names]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"{where} lacks the tensors {', '.join(missing[:3])}{more}, which config.json wants; "
            f"{remedy_for(missing, checkpoint)}"
        )
    for name, shape in required.items():
        if checkpoint.shape(name) != shape:
            raise UserError(
                f"{where}: tensor {name} has shape {list(checkpoint.shape(name))}, but config.json "
                f"makes it {list(shape)}; {CHECK}"
            )
        checkpoint.dtype(name)
    # A bias that the family's layers do not have would be dropped in silence; zeros change nothing.
    for name in sorted(names - set(required)):
        linear, _, last = name.rpartition(".")
        is_bias = last == "bias" and f"{linear}.weight" in required
        if is_bias and as_tensor(checkpoint.read(name), checkpoint.dtype(name)).any():
            raise UserError(
                f"{where}: tensor {name} is a bias that a {config.family} model has no "
                f"use for under this config.json; {CHECK}"
            )
    if config.tie_word_embeddings and "lm_head.weight" in names:
        check_tied(checkpoint, where)


def remedy_for(missing: Sequence[str], checkpoint: Checkpoint) -> str:
    for name in missing:
        if shard := checkpoint.misplaced.get(name):
            fault = "it lacks that" if shard.exists() else "that file is not there"
            return f"by the index {name} is in {shard}, but {fault}; download that file again"
    if missing == ["lm_head.weight"]:
        return "if the embedding serves as lm_head, set tie_word_embeddings in config.json"
    return CHECK


def check_tied(checkpoint: Checkpoint, where: str) -> None:
    names = "lm_head.weight", "model.embed_tokens.weight"
    if checkpoint.share_memory(*names):
        return
    dtypes = [checkpoint.dtype(name) for name in names]
    one, other = (checkpoint.read(name) for name in names)
    if (dtypes[0] != dtypes[1] or not np.array_equal(one, other)) and not np.array_equal(
            converted(one, dtypes[0], "float32"), converted(other, dtypes[1], "float32")):
        raise UserError(
            f"{where}: lm_head.weight differs from model.embed_tokens.weight, but config.json "
            "ties the two; set tie_word_embeddings to false there"
        )
