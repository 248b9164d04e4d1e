"""Which class of transformers a tokenizer.json is loaded as, and what that class changes of it.

The rules are those of transformers 5.24: `AutoTokenizer.from_pretrained` chooses the class by
tokenizer_config.json and the model type; a class with an `__init__` of its own takes vocabulary,
merges and post-processor from the file and writes the rest itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontend.model_files.json_fields import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE

# transformers' TOKENIZER_MAPPING_NAMES for the model types that we run; None: not in that table
CLASS_OF_MODEL_TYPE: Mapping[str | None, str | None] = {
    None: None, "llama": None, "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer", "mistral": "TokenizersBackend", "mixtral": "TokenizersBackend"}
# model types whose tokenizer_class is known to be wrong (MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS)
MISNAMED_MODEL_TYPES = ("qwen2",)
GENERIC_CLASSES = ("TokenizersBackend", "PreTrainedTokenizer", "PreTrainedTokenizerFast",
                   "PythonBackend")
QWEN2_WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
               r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
Settings = Mapping[str, Any]  # tokenizer_config.json


@dataclass(frozen=True, slots=True)
class TokenizerClass:
    """What sets one class of transformers apart."""

    rebuild: Callable[[BPE, Settings], Tokenizer] | None = None  # None: the file as it stands
    special_tokens: Mapping[str, str | None] = field(default_factory=dict)  # where no file says
    marks_all_special: bool = False  # also named tokens that the file has as ordinary ones


def tokenizer_class(directory: Path, config: Settings) -> TokenizerClass | None:
    """The class that `AutoTokenizer` chooses; None for one whose rules are not written here."""
    path = directory / "config.json"
    model = read_json(path) if path.exists() else {}
    model_type = model.get("model_type")
    if "auto_map" in config or "auto_map" in model or model_type not in CLASS_OF_MODEL_TYPE:
        return None
    registered = CLASS_OF_MODEL_TYPE[model_type]  # type: ignore[index]
    if registered == "TokenizersBackend":  # of Mistral: tekken.json is read by mistral-common
        return None if (directory / "tekken.json").exists() else TokenizerClass()
    named = config.get("tokenizer_class") or model.get("tokenizer_class") or registered
    if not isinstance(named, str | None):
        return None
    name = (named or "TokenizersBackend").removesuffix("Fast")
    if model_type in MISNAMED_MODEL_TYPES and registered is not None:
        name = registered
    if name == "LlamaTokenizer" and b'"ByteLevel"' in (directory / "tokenizer.json").read_bytes():
        return TokenizerClass()
    return CLASSES.get(name)


def rebuild(file: Tokenizer, made_by: TokenizerClass, config: Settings) -> Tokenizer | None:
    """`file` as the class builds it, without added tokens yet; None where that is unknown."""
    from tokenizers.models import BPE

    if made_by.rebuild is None:
        return file
    model, flags = file.model, (config.get("add_prefix_space"), config.get("legacy"))
    if not isinstance(model, BPE) or not all(isinstance(flag, bool | None) for flag in flags):
        return None
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    model.dropout, model.ignore_merges = None, False
    built = made_by.rebuild(model, config)
    if file.post_processor is not None:
        built.post_processor = file.post_processor
    return built


def as_llama(model: BPE, config: Settings) -> Tokenizer:
    """Words begin with ▁ by the class's own rule, whatever tokenizer.json says."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    model.unk_token, model.fuse_unk, model.byte_fallback = None, True, True
    has_prefix = config.get("add_prefix_space") is not False
    scheme = ("always" if config.get("legacy") else "first") if has_prefix else "never"
    built = Tokenizer(model)
    built.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    built.decoder = decoders.Sequence(
        [*steps, decoders.Strip(content=" ", left=1)] if has_prefix else steps)
    return built


def as_gpt2(model: BPE, config: Settings) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, pre_tokenizers

    model.unk_token, model.fuse_unk, model.byte_fallback = None, False, False
    built = Tokenizer(model)
    built.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=config.get("add_prefix_space", False))
    built.decoder = decoders.ByteLevel()
    return built


def as_qwen2(model: BPE, config: Settings) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    model.unk_token, model.fuse_unk, model.byte_fallback = None, False, False
    built = Tokenizer(model)
    built.normalizer = normalizers.NFC()
    built.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")),
                                 use_regex=False)])
    built.decoder = decoders.ByteLevel()
    return built


END_OF_TEXT = "<|endoftext|>"
CLASSES: Mapping[str, TokenizerClass] = {
    **dict.fromkeys(GENERIC_CLASSES, TokenizerClass()),
    "LlamaTokenizer": TokenizerClass(
        as_llama, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}),
    "GPT2Tokenizer": TokenizerClass(
        as_gpt2, dict.fromkeys(("unk_token", "bos_token", "eos_token"), END_OF_TEXT)),
    "Qwen2Tokenizer": TokenizerClass(
        as_qwen2, dict.fromkeys(("unk_token", "eos_token", "pad_token"), END_OF_TEXT),
        marks_all_special=True),
}
