"""What reading and checking requests takes of a decoder, so that it may stand above them."""

from __future__ import annotations

from typing import Protocol

from frontend.config.decoder_config import DecoderConfig
from frontend.model_files.tokenizer import Tokenizer


class Served(Protocol):
    """A decoder, as requests see it."""

    config: DecoderConfig
    tokenizer: Tokenizer | None
    max_context: int
    max_requests: int
