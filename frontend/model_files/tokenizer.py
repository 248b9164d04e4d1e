"""Text to token ids and back, one token at a time where it streams.

`encode` gives what `AutoTokenizer`'s `tokenizer(text).input_ids` gives, `decode` what its
`decode(ids, skip_special_tokens=True)` gives. Where there is a tokenizer.json this takes no import
of transformers, unless the directory asks for a class or a setting whose rules are not written
here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from event_tensor.errors import UserError
from frontend.model_files.chat_template import (
    ChatTemplate,
    load_chat_template,
    template_of_tokenizer,
)
from frontend.model_files.json_fields import read_json, require_directory
from frontend.model_files.special_tokens import (
    add_tokens,
    added_tokens,
    mark_special,
    special_tokens,
)
from frontend.model_files.text_stream import TextStream
from frontend.model_files.tokenizer_class import rebuild, tokenizer_class

if TYPE_CHECKING:
    import tokenizers

# Files from which transformers can build a tokenizer when there is no tokenizer.json.
OTHER_TOKENIZER_FILES = ("tokenizer.model", "tekken.json", "vocab.json", "vocab.txt")
# Settings of tokenizer_config.json
SPLITS_SPECIAL_TOKENS = "split_special_tokens"
CLEANS_SPACES = "clean_up_tokenization_spaces"
CLEANS_BPE_TOO = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
UNUSUAL_SETTINGS = frozenset((  # arguments of transformers that no tokenizer writes there itself
    CLEANS_BPE_TOO, "fast_tokenizer_files", "fix_mistral_regex", "gguf_file", "init_inputs",
    "merges", "post_processor", "tokenizer_object", "tokenizer_padding", "tokenizer_truncation",
    "vocab"))


@dataclass(frozen=True, slots=True)
class Tokenizer:
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]  # leaves out special tokens
    decode_all: Callable[[Sequence[int]], str]  # special tokens are text, too
    is_silent: Callable[[int], bool]  # whether `decode` leaves this id out wherever it stands
    token_id: Callable[[str], int | None]  # the id of a token such as "<|im_end|>"
    encode_bare: Callable[[str], list[int]]  # adds no special tokens to those the text has
    chat_template: Callable[[], ChatTemplate]  # raises UserError where there is none to use
    eos_token_id: int | None  # of its own eos_token, whatever the model's config says

    def stream(self, prompt_ids: Sequence[int] = ()) -> TextStream:
        """The text of tokens that come one by one, as it goes on from the text of `prompt_ids`."""
        return TextStream(self.decode, self.is_silent, prompt_ids)

    def stream_all(self, prompt_ids: Sequence[int] = ()) -> TextStream:
        """Likewise, special tokens as text."""
        return TextStream(
            self.decode_all,
            lambda token_id: self.is_silent(token_id) and not self.decode_all([token_id]),
            prompt_ids)

    def special_token_id(self, text: str) -> int | None:
        """The id of a special token; None for any other text."""
        token_id = self.token_id(text)
        return token_id if token_id is not None and self.is_silent(token_id) else None


def load_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer of a model directory; None if the directory holds none."""
    directory = Path(directory)
    require_directory(directory)
    if (directory / "tokenizer.json").exists():
        return from_tokenizer_json(directory)
    if any((directory / name).exists() for name in OTHER_TOKENIZER_FILES):
        return from_transformers(load_with_transformers(
            directory, f"{directory} has no tokenizer.json, and transformers cannot load its "
                       f"other files"))
    return None


def from_tokenizer_json(directory: Path) -> Tokenizer:
    import tokenizers

    path = directory / "tokenizer.json"
    try:
        file = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        read_json(path)  # says so, if the file is not even JSON
        raise UserError(f"{path} is not a tokenizer ({error}); download it again") from None
    config_path = directory / "tokenizer_config.json"
    config = read_json(config_path) if config_path.exists() else {}
    try:
        tokenizer = as_transformers_builds(directory, file, config)
    except (KeyError, TypeError, ValueError, AttributeError):
        tokenizer = None
    if tokenizer is not None:
        return tokenizer
    return from_transformers(load_with_transformers(
        directory, f"{config_path} describes its tokenizer in a way we cannot read"))


def as_transformers_builds(
    directory: Path, file: "tokenizers.Tokenizer", config: dict[str, Any]
) -> Tokenizer | None:
    """The tokenizer that `AutoTokenizer` makes of `file`; None where its rules are not ours.

    Raises KeyError, TypeError, ValueError or AttributeError for settings that are none.
    """
    from tokenizers.models import BPE

    made_by = tokenizer_class(directory, config)
    splits, cleans = (config.get(name, False) for name in (SPLITS_SPECIAL_TOKENS, CLEANS_SPACES))
    is_plain = isinstance(splits, bool) and not config.keys() & UNUSUAL_SETTINGS
    if made_by is None or not is_plain or has_legacy_tokens(directory, config):
        return None
    known = added_tokens(config, file)
    named, unnamed = special_tokens(directory, config, file, made_by, known)
    tokenizer = rebuild(file, made_by, config)
    if tokenizer is None:
        return None
    # The file may carry the settings of a training run; a prompt is neither cut nor padded.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = splits
    add_tokens(tokenizer, known, named, unnamed)
    if made_by.marks_all_special:
        mark_special(tokenizer, named, unnamed)
    is_cleaned = cleans and not isinstance(tokenizer.model, BPE)
    return over_tokenizers(tokenizer, directory, str(named.get("eos_token", "")), bool(is_cleaned))


def over_tokenizers(
    tokenizer: "tokenizers.Tokenizer", directory: Path, eos_token: str, is_cleaned: bool
) -> Tokenizer:
    """Our interface over a tokenizer of the tokenizers library. is_cleaned: see `clean_up`."""
    added = tokenizer.get_added_tokens_decoder()
    special = {token_id for token_id, token in added.items() if token.special}

    def encode(text: str, *, add_special_tokens: bool) -> list[int]:
        with encoding(text):
            return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        text = str(tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))
        return clean_up(text) if is_cleaned else text

    return Tokenizer(
        encode=partial(encode, add_special_tokens=True),
        decode=partial(decode, skip_special_tokens=True),
        decode_all=partial(decode, skip_special_tokens=False),
        is_silent=lambda token_id: token_id in special or tokenizer.id_to_token(token_id) is None,
        token_id=tokenizer.token_to_id,
        encode_bare=partial(encode, add_special_tokens=False),
        chat_template=partial(load_chat_template, directory),
        eos_token_id=tokenizer.token_to_id(eos_token),
    )


def clean_up(text: str) -> str:
    """`clean_up_tokenization` of transformers, for words that were joined by spaces."""
    for words in (".", "?", "!", ",", "' ", "n't", "'m", "'s", "'ve", "'re"):
        text = text.replace(f" {words}", words.strip())
    return text


def has_legacy_tokens(directory: Path, config: dict[str, Any]) -> bool:
    """Whether added_tokens.json counts: tokenizers of the time before tokenizer.json."""
    return "added_tokens_decoder" not in config and (directory / "added_tokens.json").exists()


@contextmanager
def encoding(text: str) -> Iterator[None]:
    """Raises UserError for what is no text, and for a text that the tokenizer fails at."""
    try:
        text.encode("utf-8")
        yield
    except UnicodeEncodeError:
        raise UserError("the prompt is not UTF-8 text; convert it to UTF-8") from None
    except Exception as error:  # the tokenizers library raises bare Exception
        raise UserError(f"the tokenizer cannot encode the prompt ({error}); its files do not fit "
                        f"together, download them again") from None


def load_with_transformers(directory: Path, complaint: str) -> Any:
    """`AutoTokenizer` of a directory. complaint: begins the error where that fails."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # a missing package, a damaged file, a class that needs remote code
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise UserError(f"{complaint} ({reason}); download tokenizer.json and "
                        f"tokenizer_config.json again") from None


def from_transformers(tokenizer: Any) -> Tokenizer:
    """The same interface over a loaded transformers tokenizer."""
    vocab_size = len(tokenizer)
    special = frozenset(
        token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
    ) if tokenizer.is_fast else frozenset(tokenizer.all_special_ids)

    def encode(text: str, *, add_special_tokens: bool) -> list[int]:
        with encoding(text):
            return list(tokenizer(text, add_special_tokens=add_special_tokens).input_ids)

    def token_id(text: str) -> int | None:
        found = tokenizer.get_vocab().get(text)
        return None if found is None else int(found)

    return Tokenizer(
        encode=partial(encode, add_special_tokens=True),
        decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        decode_all=lambda ids: str(tokenizer.decode(list(ids))),
        is_silent=lambda token_id: token_id in special or token_id >= vocab_size,
        token_id=token_id,
        encode_bare=partial(encode, add_special_tokens=False),
        chat_template=template_of_tokenizer(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
    )
