"""The special tokens that a model directory names, added to its tokenizer as transformers does.

The steps are those of transformers 5.24 (`PreTrainedTokenizerBase._from_pretrained` and
`TokenizersBackend.__init__`), in their order, for the ids of new tokens depend on it. Its
add_bos_token and add_eos_token do not count beside a tokenizer.json, there as here: the file's own
post-processor decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frontend.model_files.json_fields import read_json
from frontend.model_files.tokenizer_class import TokenizerClass

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

# SPECIAL_TOKENS_ATTRIBUTES; tokens with other names are special to one model
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def added_tokens(config: Mapping[str, Any], file: Tokenizer
                 ) -> dict[int, AddedToken]:
    """Those of tokenizer_config.json, or of tokenizer.json where that lists none."""
    from tokenizers import AddedToken

    if "added_tokens_decoder" not in config:
        return dict(file.get_added_tokens_decoder())
    return {int(token_id): AddedToken(**fields)
            for token_id, fields in config["added_tokens_decoder"].items()}


def special_tokens(directory: Path, config: Mapping[str, Any], file: Tokenizer,
                   made_by: TokenizerClass, known: Mapping[int, AddedToken]
                   ) -> tuple[dict[str, Any], list[Any]]:
    """Special tokens with a name, as {name: token}, and those without.

    special_tokens_map.json counts only where tokenizer_config.json is of the time before
    added_tokens_decoder. Raises TypeError for what is neither a text nor a token.
    """
    settings = without_aliases(config)
    if "added_tokens_decoder" not in config:
        add_special_tokens_map(settings, directory)
    settings = as_tokens(settings)
    by_text = {str(token): token for token in known.values()}
    for name in NAMED:
        if settings.get(name) is not None:
            settings[name] = by_text.get(str(settings[name]), settings[name])
    settings = {**made_by.special_tokens, **settings}
    if file.padding is not None:
        settings.setdefault("pad_token", file.padding["pad_token"])
    extra = settings.get("extra_special_tokens") or []
    named = dict.fromkeys(NAMED) | {name: settings[name] for name in NAMED if name in settings}
    named |= extra if isinstance(extra, dict) else {}
    named |= {name: token for name, token in settings.items()
              if name.endswith("_token") and name not in NAMED and is_token(token)}
    named |= settings.get("model_specific_special_tokens") or {}
    named = {name: token for name, token in named.items() if token is not None}
    unnamed = [] if isinstance(extra, dict) else list(extra)
    if not all(map(is_token, (*named.values(), *unnamed))):
        raise TypeError("a special token is neither a text nor an added token")
    return named, unnamed


def without_aliases(config: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json, each special token under the one name that transformers keeps."""
    settings = dict(config)
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    specific = {name: settings.pop(name) for name in list(settings)
                if name not in NAMED and name.endswith("_token")
                and isinstance(settings[name], str)}
    if isinstance(settings.get("extra_special_tokens"), dict):
        specific |= settings.pop("extra_special_tokens")
    if specific:
        settings["model_specific_special_tokens"] = specific
    return settings


def add_special_tokens_map(settings: dict[str, Any], directory: Path) -> None:
    from tokenizers import AddedToken

    path = directory / "special_tokens_map.json"
    legacy: Mapping[str, Any] = read_json(path) if path.exists() else {}
    for name, value in legacy.items():
        if name == "extra_special_tokens" and isinstance(value, list):
            tokens = [AddedToken(**token | {"special": True}) if isinstance(token, dict) else token
                      for token in value]
            before = list(settings.get(name) or [])
            value = before + [token for token in tokens if token not in before]
        elif isinstance(value, dict) and name != "extra_special_tokens":
            value = AddedToken(**value | {"special": True})
        settings[name] = value
    if isinstance(settings.get("extra_special_tokens"), dict):
        specific = settings.setdefault("model_specific_special_tokens", {})
        specific |= settings.pop("extra_special_tokens")
    if "additional_special_tokens" in settings and "extra_special_tokens" not in settings:
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")


def as_tokens(value: Any) -> Any:
    """JSON with its objects of "__type": "AddedToken" made into tokens."""
    from tokenizers import AddedToken

    if isinstance(value, dict):
        if value.get("__type") == "AddedToken":
            return AddedToken(**{name: flag for name, flag in value.items() if name != "__type"})
        return {name: as_tokens(entry) for name, entry in value.items()}
    return [as_tokens(entry) for entry in value] if isinstance(value, list) else value


def is_token(value: Any) -> bool:
    from tokenizers import AddedToken

    return isinstance(value, str | AddedToken)


def add_tokens(tokenizer: Tokenizer, known: Mapping[int, AddedToken], named: Mapping[str, Any],
               unnamed: list[Any]) -> None:
    """Adds `known` by their ids, then special tokens that neither they nor the file have."""
    from tokenizers import AddedToken

    tokens: list[Any] = [token for _, token in sorted(known.items(), key=lambda item: item[0])]
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    present |= {str(token) for token in tokens}
    for token in (*named.values(), *unnamed):
        if str(token) not in present and token not in tokens:
            tokens.append(token)
    names = {str(token) for token in named.values()}
    for k, token in enumerate(tokens):
        if isinstance(token, str):
            tokens[k] = AddedToken(token, special=True)
        elif not token.special and str(token) in names:
            token.special = True
    tokenizer.add_tokens(tokens)


def mark_special(tokenizer: Tokenizer, named: Mapping[str, Any], unnamed: list[Any]) -> None:
    """Adds every special token once more, plain but for being special."""
    from tokenizers import AddedToken

    texts = dict.fromkeys(str(token) for token in (*named.values(), *unnamed))
    tokenizer.add_tokens([AddedToken(text, special=True) for text in texts])
