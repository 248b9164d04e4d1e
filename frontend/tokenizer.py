"""Text to token ids and back, one token at a time where it streams.

`encode` gives what transformers' `tokenizer(text).input_ids` gives, `decode` what its `decode(ids,
skip_special_tokens=True)` gives, without importing transformers where there is a tokenizer.json.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from event_tensor.errors import UserError
from frontend.chat_template import ChatTemplate, load_chat_template, template_of_tokenizer
from frontend.fields import read_json, require_directory, token_text

if TYPE_CHECKING:
    import tokenizers

# Files from which transformers can build a tokenizer when there is no tokenizer.json.
OTHER_TOKENIZER_FILES = ("tokenizer.model", "tekken.json", "vocab.json", "vocab.txt")
REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not (or not yet) a character
LLAMA_TOKENIZER_CLASSES = ("LlamaTokenizer", "LlamaTokenizerFast")
TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
MAX_HELD_TOKENS = 8  # a character has at most 4 bytes, so at most 4 tokens: more is not a character
MAX_HELD_CHARACTERS = 3  # an unfinished character shows as one to three replacement characters
OVERLAP_TOKENS = 12  # enough to see MAX_HELD_CHARACTERS, of up to 3 bytes each, in full


@dataclass(frozen=True, slots=True)
class Tokenizer:
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]  # leaves out special tokens
    is_silent: Callable[[int], bool]  # whether `decode` leaves this id out wherever it stands
    token_id: Callable[[str], int | None]  # the id of a token such as "<|im_end|>"
    encode_bare: Callable[[str], list[int]]  # adds no special tokens to those the text has
    chat_template: Callable[[], ChatTemplate]  # raises UserError where there is none to use

    def stream(self) -> "TextStream":
        return TextStream(self)


class TextStream:
    """Incremental detokenizer: the pieces that `push` and `flush` return join to the whole text.

    Every step decodes only the tokens since the last complete character and those before it that
    the decoder's treatment of word boundaries depends on.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # the tokens we decode: a finished part, then a held one
        self._finished = 0  # tokens of the window whose text is out
        self._emitted = 0  # characters of the window's text that are out

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes: empty while a character is unfinished."""
        if self._tokenizer.is_silent(token_id):
            return ""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        if not text.endswith(REPLACEMENT):
            if len(text) <= self._emitted:  # nothing to see yet: a lone word boundary
                return ""
            piece = text[self._emitted :]
            self._window = self._window[self._finished :]
            self._finished = len(self._window)
            self._emitted = len(self._tokenizer.decode(self._window))
            return piece
        if len(self._window) - self._finished <= MAX_HELD_TOKENS:
            return ""
        # These bytes are no text. All but the last few characters are settled, whatever follows.
        held = min(len(text) - len(text.rstrip(REPLACEMENT)), MAX_HELD_CHARACTERS)
        piece = text[self._emitted : len(text) - held]
        self._window = self._window[-OVERLAP_TOKENS:]
        self._finished = len(self._window) - MAX_HELD_CHARACTERS
        self._emitted = len(self._tokenizer.decode(self._window)) - held
        return piece

    def flush(self) -> str:
        """What is still held back, unfinished characters included; the stream starts afresh."""
        piece = self._tokenizer.decode(self._window)[self._emitted :]
        self._window, self._finished, self._emitted = [], 0, 0
        return piece


def load_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer of a model directory; None if the directory holds none."""
    directory = Path(directory)
    require_directory(directory)
    if (directory / "tokenizer.json").exists():
        return from_tokenizer_json(directory)
    if any((directory / name).exists() for name in OTHER_TOKENIZER_FILES):
        return from_other_files(directory)
    return None


def from_tokenizer_json(directory: Path) -> Tokenizer:
    import tokenizers

    path = directory / "tokenizer.json"
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        read_json(path)  # says so, if the file is not even JSON
        raise UserError(f"{path} is not a tokenizer ({error}); download it again") from None
    # The file may carry the settings of a training run; a prompt is neither cut nor padded.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config_path = directory / "tokenizer_config.json"
    if config_path.exists():
        try:
            config = read_json(config_path)
            add_special_tokens(tokenizer, config)
            if is_rebuilt_as_llama(tokenizer, config, directory):
                rebuild_as_llama(tokenizer, config)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{config_path} describes its special tokens in a way we cannot read ({error}); "
                "download it again"
            ) from None
    added = tokenizer.get_added_tokens_decoder()
    special = {token_id for token_id, token in added.items() if token.special}
    return Tokenizer(
        encode=lambda text: list(tokenizer.encode(require_text(text)).ids),
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        is_silent=lambda token_id: token_id in special or tokenizer.id_to_token(token_id) is None,
        token_id=tokenizer.token_to_id,
        encode_bare=lambda text: list(
            tokenizer.encode(require_text(text), add_special_tokens=False).ids
        ),
        chat_template=partial(load_chat_template, directory),
    )


def add_special_tokens(tokenizer: "tokenizers.Tokenizer", config: dict[str, Any]) -> None:
    """Adds the special tokens that only tokenizer_config.json names, as transformers does.

    Its add_bos_token and add_eos_token do not count beside a tokenizer.json, there as here: the
    file's own post-processor decides.
    """
    from tokenizers import AddedToken

    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    listed = config.get("added_tokens_decoder") or {}
    for token_id in sorted(listed, key=int):
        if listed[token_id]["content"] not in known:
            flags = {key: value for key, value in listed[token_id].items() if key in TOKEN_FLAGS}
            tokenizer.add_tokens([AddedToken(listed[token_id]["content"], **flags)])

    added = tokenizer.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    named = (token for name, token in config.items() if name.endswith("_token"))
    extra = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    extra = extra.values() if isinstance(extra, dict) else extra
    for text in map(token_text, (*named, *extra)):
        if text and text not in special:
            tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False)])


def is_rebuilt_as_llama(
    tokenizer: "tokenizers.Tokenizer", config: dict[str, Any], directory: Path
) -> bool:
    """Whether transformers loads this as LlamaTokenizer, over the head of its tokenizer.json."""
    from tokenizers.models import BPE

    is_spelled_in_bytes = isinstance(tokenizer.model, BPE) and tokenizer.model.byte_fallback
    if not is_spelled_in_bytes or config.get("tokenizer_class") not in LLAMA_TOKENIZER_CLASSES:
        return False
    model_path = directory / "config.json"
    model_type = read_json(model_path).get("model_type") if model_path.exists() else None
    return model_type not in ("mistral", "qwen2")  # these it loads by model type, not by class


def rebuild_as_llama(tokenizer: "tokenizers.Tokenizer", config: dict[str, Any]) -> None:
    """LlamaTokenizer marks where words begin by its own rule, whatever tokenizer.json says."""
    from tokenizers.pre_tokenizers import Metaspace

    scheme = "always" if config.get("legacy") else "first"
    if config.get("add_prefix_space") is False:
        scheme = "never"
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = Metaspace(replacement="▁", prepend_scheme=scheme, split=False)


def require_text(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError("the prompt is not UTF-8 text; convert it to UTF-8") from None
    return text


def from_other_files(directory: Path) -> Tokenizer:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a missing package, a damaged file, a class that needs remote code
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise UserError(
            f"{directory} has no tokenizer.json, and transformers cannot load its other files "
            f"({reason}); add tokenizer.json"
        ) from None
    return from_transformers(tokenizer)


def from_transformers(tokenizer: Any) -> Tokenizer:
    """The same interface over a loaded transformers tokenizer."""
    special, vocab_size = frozenset(tokenizer.all_special_ids), len(tokenizer)

    def token_id(text: str) -> int | None:
        found = tokenizer.get_vocab().get(text)
        return None if found is None else int(found)

    return Tokenizer(
        encode=lambda text: list(tokenizer(require_text(text)).input_ids),
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        is_silent=lambda token_id: token_id in special or token_id >= vocab_size,
        token_id=token_id,
        encode_bare=lambda text: list(
            tokenizer(require_text(text), add_special_tokens=False).input_ids
        ),
        chat_template=template_of_tokenizer(tokenizer),
    )
