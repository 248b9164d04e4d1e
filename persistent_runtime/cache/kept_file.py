"""A file of the cache that says what its content depends on, and whether that is still whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from persistent_runtime.cache.files import VARIABLE, read_file, write_file, write_problem

Key = Mapping[str, str]
NEW = "not made before"


def changed_keys(old: Key, new: Key) -> list[str]:
    """Names of what differs."""
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]


class KeptFile:
    """A file of the cache: a line of JSON with a checksum and what the content depends on, then the
    content.

    reason: why it was not found; note: what was wrong with the file or the folder.
    """

    def __init__(self, path: Path, key: Key) -> None:
        self.path = path
        self.key = dict(key)
        self.reason = self.note = ""

    def load(self) -> bytes | None:
        try:
            content = read_file(self.path)
        except FileNotFoundError:
            self.reason = NEW
            return None
        except OSError as error:
            self.reason = self.note = f"cannot use {self.path}: {error.strerror}"
            return None
        header, _, payload = content.partition(b"\n")
        try:
            record = json.loads(header)
            digest, key = record["sha256"], {**record["key"]}
        except (ValueError, KeyError, TypeError):
            digest, key = "", self.key
        if key != self.key:
            self.reason = "changed: " + ", ".join(changed_keys(key, self.key))
            return None
        if digest != hashlib.sha256(payload).hexdigest():
            self.reason = "damaged"
            self.note = f"replaced a damaged entry in {self.path.parent}"
            return None
        return payload

    def save(self, payload: bytes) -> None:
        record = {"sha256": hashlib.sha256(payload).hexdigest(), "key": self.key}
        try:
            write_file(self.path, json.dumps(record).encode() + b"\n" + payload)
        except OSError as error:  # a full disk, say; the process itself runs without it
            folder = self.path.parent  # if it is missing, what keeps it from being made says more
            self.note = (f"not cached in {folder}: {write_problem(folder) or error.strerror}; set "
                         f"{VARIABLE} to a directory that can be written")
