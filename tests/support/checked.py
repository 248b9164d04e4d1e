"""Checkpoints opened and checked as `compile_decode_loop` does it."""

from pathlib import Path

from frontend.config.decoder_config import DecoderConfig
from frontend.families.decoder import required_tensors
from frontend.families.read_config import read_config
from frontend.families.registry import family_named
from frontend.graph import check_tensors as checks
from frontend.model_files import checkpoint as checkpoints
from frontend.model_files.checkpoint import Checkpoint


def check_tensors(checkpoint: Checkpoint, config: DecoderConfig) -> None:
    checks.check_tensors(checkpoint, required_tensors(config), config.family)


def open_checkpoint(directory: Path) -> Checkpoint:
    """As the family of its config.json spells its tensors."""
    family = family_named(read_config(directory).family)
    return checkpoints.open_checkpoint(directory, family.tensor_name)
