"""The JSON files of a model directory: every mistake in them is one sentence with its remedy."""

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from event_tensor.errors import UserError

GIT_LFS_POINTER = b"version https://git-lfs"
INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Fields:
    """Typed access to the fields of one JSON object.

    An absent field takes its default; null is not absent, as in transformers.
    """

    source: str
    values: Mapping[str, object]
    defaults: Mapping[str, object] = field(default_factory=dict)

    def get(self, name: str) -> object:
        return self.values.get(name, self.defaults.get(name))

    def error(self, name: str, rule: str) -> UserError:
        if self.get(name) is None:
            return UserError(f"{self.source}: the field {name} is missing; {rule}")
        return UserError(f"{self.source}: {name} is {self.get(name)!r}; {rule}")

    def integer(self, name: str) -> int:
        value = self.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= INT32_MAX:
            return value
        raise self.error(name, "it must be a positive integer")

    def number(self, name: str) -> float:
        value = self.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if 0 < value <= sys.float_info.max:  # neither infinite nor NaN
                return float(value)
        raise self.error(name, "it must be a positive number")

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise self.error(name, "it must be true or false")

    def token_ids(self, name: str) -> tuple[int, ...]:
        """An id, a list of ids or null; negative ids, some files' word for "none", are dropped."""
        value = self.get(name)
        values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        ids = [entry for entry in values if isinstance(entry, int) and not isinstance(entry, bool)]
        if len(ids) < len(values):
            raise self.error(name, "it must be a token id, a list of token ids or null")
        return tuple(dict.fromkeys(token_id for token_id in ids if token_id >= 0))


def require_directory(directory: Path) -> None:
    """Raises UserError unless `directory` is a directory that can be listed."""
    try:
        os.scandir(directory).close()
    except FileNotFoundError:
        raise UserError(
            f"{directory} does not exist; give a model directory in Hugging Face layout"
        ) from None
    except NotADirectoryError:
        raise UserError(
            f"{directory} is a file; give the model directory that holds config.json"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"{directory} cannot be read ({reason}); check the path and its permissions"
        ) from None


def read_json(path: Path) -> dict[str, object]:
    """The JSON object in `path`; UserError if it is unreadable, not JSON or not an object."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} has no {path.name}; give a model directory in Hugging Face layout"
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path} cannot be read ({reason}); check the file's permissions") from None
    if content.startswith(GIT_LFS_POINTER):
        raise UserError(f"{path} is a git-lfs pointer, not the file itself; run `git lfs pull`")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(values, dict):
        kind = type(values).__name__
        raise UserError(f"{path} holds a JSON {kind}, not an object; download it again")
    return values


def token_text(token: object) -> str | None:
    """The text of a token that a JSON file gives as a string or as an object with `content`."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
