"""Chat templates: messages become the text a model was trained on, as in transformers.

The template is chat_template.jinja, or `chat_template` in tokenizer_config.json; transformers'
sandboxed Jinja environment renders it, with the special tokens that tokenizer_config.json names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from event_tensor.errors import UserError
from frontend.model_files.json_fields import read_json, token_text

Message = dict[str, str]  # role: "system", "user" or "assistant"; content: the text
REMEDY = ("use an instruction-tuned model, add the file chat_template.jinja, or continue plain "
          "text with `event-tensor generate`")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    text: str  # Jinja
    special_tokens: Mapping[str, str]  # "bos_token", … → its text
    source: str  # for messages to people

    def render(self, messages: Sequence[Message]) -> str:
        """The whole conversation, up to where the next answer begins.

        Raises UserError where the template is broken or refuses the messages.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        names: dict[str, Any] = dict(self.special_tokens)
        try:
            answer: Any = render_jinja_template(
                conversations=[list(messages)], chat_template=self.text,
                add_generation_prompt=True, **names)
            (rendered,), _ = answer
        except Exception as error:  # a template is a program, and may fail in any way
            reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
            raise UserError(f"the chat template of {self.source} fails on this conversation "
                            f"({reason}); leave out what it refuses, or correct it") from None
        return str(rendered)


def load_chat_template(directory: Path) -> ChatTemplate:
    """The template of a model directory. Raises UserError where there is none to use."""
    directory = Path(directory)
    path = directory / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    found: Any = config.get("chat_template")
    if (directory / "chat_template.jinja").exists():
        path = directory / "chat_template.jinja"
        try:
            found = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} cannot be read ({error}); download it again") from None
    return ChatTemplate(choose_template(found, path, directory),
                        named_special_tokens(directory, config), str(directory))


def template_of_tokenizer(tokenizer: Any) -> Callable[[], ChatTemplate]:
    """Likewise, of a loaded transformers tokenizer."""
    source = tokenizer.name_or_path or type(tokenizer).__name__
    return lambda: ChatTemplate(choose_template(tokenizer.chat_template, source, source),
                                tokenizer.special_tokens_map, source)


def choose_template(found: Any, path: object, model: object) -> str:
    """The template itself, of a text, of {name: text} or of [{"name": …, "template": …}]."""
    if isinstance(found, (list, tuple)):
        try:
            found = {entry["name"]: entry["template"] for entry in found}
        except (KeyError, TypeError):
            raise UserError(f"{path}: chat_template is a list whose entries lack name or template; "
                            f"download it again") from None
    if isinstance(found, dict):
        if "default" not in found:
            raise UserError(f"{path}: no chat template is named default, only "
                            f"{', '.join(map(str, found)) or 'none'}; {REMEDY}")
        found = found["default"]
    if found is None:
        raise UserError(f"{model} has no chat template; {REMEDY}")
    if not isinstance(found, str):
        raise UserError(f"{path}: chat_template is a {type(found).__name__}, not a text; download "
                        f"it again")
    return found


def named_special_tokens(directory: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """`special_tokens_map` of transformers: bos_token, eos_token and what else has a name.

    special_tokens_map.json counts only where tokenizer_config.json is of the time before
    added_tokens_decoder.
    """
    named = dict(config)
    legacy = directory / "special_tokens_map.json"
    if "added_tokens_decoder" not in config and legacy.exists():
        named |= read_json(legacy)
    extra = named.get("extra_special_tokens")
    entries = class_special_tokens(str(config.get("tokenizer_class")))
    entries |= {name: value for name, value in named.items() if name.endswith("_token")}
    entries |= extra if isinstance(extra, dict) else {}
    entries |= named.get("model_specific_special_tokens") or {}
    texts = {name: token_text(value) for name, value in entries.items()}
    return {name: text for name, text in texts.items() if text is not None}


def class_special_tokens(tokenizer_class: str) -> dict[str, Any]:
    """What a tokenizer class of transformers calls its special tokens where its files do not."""
    import transformers

    made_by = getattr(transformers, tokenizer_class, None)
    if not inspect.isclass(made_by):
        return {}
    return {name: parameter.default
            for name, parameter in inspect.signature(made_by.__init__).parameters.items()
            if name.endswith("_token") and isinstance(parameter.default, str)}
