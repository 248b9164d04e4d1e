"""Whether a checkpoint holds the tensors that a graph reads."""

from collections.abc import Mapping, Sequence

import numpy as np

from event_tensor.errors import UserError
from frontend.model_files.checkpoint import Checkpoint
from frontend.model_files.expert_weights import Shape, stored_tensors
from persistent_runtime.storage import as_tensor, converted

CHECK = "check that config.json and the weights belong together"


def check_tensors(checkpoint: Checkpoint, weights: Mapping[str, Shape], family: str) -> None:
    """Raises UserError unless the checkpoint holds the decoder that config.json describes.

    weights: name → shape, as the graph declares them. family: its model_type.
    """
    where = str(checkpoint.files[0].parent) if checkpoint.files else "the loaded model"
    required = stored_tensors(checkpoint, weights)
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
                f"{where}: tensor {name} is a bias that a {family} model has no "
                f"use for under this config.json; {CHECK}"
            )
    if "lm_head.weight" in names - set(required):
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
