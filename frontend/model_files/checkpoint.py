"""The weights of a model by name: from safetensors files, memory-mapped, or from a loaded model.

Files are read without torch, whose import takes longer than the rest of a start, and without which
safetensors has no bfloat16. A damaged file is named before anything is computed.
"""

import json
import math
import mmap
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from event_tensor.errors import UserError
from event_tensor.refusals import refusal
from frontend.model_files.json_fields import GIT_LFS_POINTER, read_json, require_directory
from frontend.model_files.loaded_models import weights_by_name
from persistent_runtime.formats import BY_TAG, DTYPES, format_of
from persistent_runtime.storage import as_array

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FORMATS_WE_REFUSE = {
    "*.bin": "PyTorch pickle weights",
    "*.pth": "PyTorch pickle weights",
    "*.pt": "PyTorch pickle weights",
    "*.gguf": "GGUF weights",
    "*.h5": "TensorFlow weights",
    "*.msgpack": "Flax weights",
}
Spelling = Callable[[str], str]  # a stored tensor's name → its name in the graph
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: where it lies, and what its header says of it."""

    stored_name: str
    shape: tuple[int, ...]
    element_type: str  # as the file or torch spells it: BF16, bfloat16, F8_E4M3, int8
    nbytes: int
    file: Path | None = None
    begin: int = 0  # of its data, in bytes from the start of the file
    tensor: "torch.Tensor | None" = None

    @property
    def dtype(self) -> str:
        """The name of its format, or what the file calls one that we do not have."""
        known = BY_TAG.get(self.element_type)
        return known.name if known else self.element_type


def as_it_is(name: str) -> str:
    return name


class Checkpoint:
    """Tensors by their names in a transformers causal model (`model.layers.0.…`, `lm_head.weight`).

    Names of a bare decoder, which lack the leading `model.`, are read as if they had it.
    spelling: what else a family's files name in a way of their own.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        files: tuple[Path, ...] = (),
        misplaced: Mapping[str, Path] | None = None,
        spelling: Spelling = as_it_is,
    ) -> None:
        self.files = files
        # tensors that no file holds, and the file in which the index places each
        self.misplaced = {
            canonical_name(name, spelling): file for name, file in (misplaced or {}).items()
        }
        self._entries: dict[str, Entry] = {}
        for entry in entries.values():
            if not entry.stored_name.endswith("rotary_emb.inv_freq"):  # computed, not learned
                self._entries[canonical_name(entry.stored_name, spelling)] = entry
        self._mapped: dict[Path, NDArray[np.uint8]] = {}
        self._closed = False

    def names(self) -> set[str]:
        return set(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """One of DTYPES; UserError for any other element type."""
        entry = self._entry(name)
        dtype = entry.dtype
        if dtype not in DTYPES:
            raise UserError(
                f"{describe(entry)} has element type {dtype}, which is not supported; use weights "
                f"in {', '.join(DTYPES)}"
            )
        return dtype

    def vectors(self, dtype: str) -> frozenset[str]:
        """Names of the tensors of one dimension, norms and biases, that are stored so."""
        return frozenset(name for name, entry in self._entries.items()
                         if len(entry.shape) == 1 and entry.dtype == dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors; one that is shared under two names counts once."""
        sizes = {
            entry.tensor.data_ptr() if entry.tensor is not None else name: entry.nbytes
            for name, entry in self._entries.items()
        }
        return sum(sizes.values())

    def read(self, name: str) -> NDArray[Any]:
        """The tensor, in the storage type of its `dtype`, without a copy: a view of the mapped
        file, or the model's own unless that lies on a GPU.

        It stays valid after `close`. A file aligns its tensors to their element size, no further.
        """
        entry = self._entry(name)
        storage = format_of(self.dtype(name)).storage
        if self._closed:
            raise UserError(f"{describe(entry)}: its checkpoint is closed; open it again")
        if entry.tensor is not None:
            return as_array(entry.tensor)
        assert entry.file is not None
        if entry.file not in self._mapped:
            self._mapped[entry.file] = map_file(entry.file)
        data = self._mapped[entry.file][entry.begin : entry.begin + entry.nbytes]
        if len(data) < entry.nbytes:
            raise UserError(f"{describe(entry)} cannot be read: the file has become shorter; "
                            "download it again")
        array: NDArray[Any] = data.view(storage).reshape(entry.shape)
        return array if array.flags.aligned else array.copy()

    def on_device(self, name: str) -> "torch.Tensor | None":
        """The tensor of a loaded model, where that lies on a GPU; `read` would copy it."""
        tensor = self._entries[name].tensor if name in self._entries else None
        return None if tensor is None or tensor.device.type == "cpu" else tensor.detach()

    def share_memory(self, first: str, second: str) -> bool:
        """Whether two names stand for one tensor of a loaded model."""
        one, other = self._entry(first).tensor, self._entry(second).tensor
        return one is not None and other is not None and one.data_ptr() == other.data_ptr()

    def close(self) -> None:
        self._mapped.clear()
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            where = self.files[0].parent if self.files else "the loaded model"
            raise UserError(f"{where} has no tensor {name}; check that the checkpoint is complete")
        return self._entries[name]


def describe(entry: Entry) -> str:
    return f"{entry.file or 'the loaded model'}: tensor {entry.stored_name}"


def canonical_name(name: str, spelling: Spelling = as_it_is) -> str:
    name = spelling(name)
    bare = name.partition(".")[0] in ("layers", "embed_tokens", "norm")
    return f"model.{name}" if bare else name


def map_file(path: Path) -> NDArray[np.uint8]:
    """Its bytes, read as they are touched; what is written to them stays in this process."""
    try:
        with open(path, "rb") as file:
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    except (OSError, ValueError) as error:
        if refusal(error):
            raise
        raise UserError(f"{path} cannot be read ({error}); check the file") from None


def open_checkpoint(directory: Path, spelling: Spelling = as_it_is) -> Checkpoint:
    """Opens model.safetensors or, without one, the shards of model.safetensors.index.json."""
    directory = Path(directory)
    require_directory(directory)
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if os.path.lexists(single):
        return Checkpoint(read_header(single), (single,), spelling=spelling)
    if os.path.lexists(index):
        return open_shards(index, spelling)
    for pattern, kind in FORMATS_WE_REFUSE.items():
        for path in sorted(directory.glob(pattern)):
            raise UserError(
                f"{directory} holds {kind} ({path.name}), which are not supported; use weights in "
                "safetensors files (transformers' save_pretrained writes them)"
            )
    for path in sorted(directory.glob("*.safetensors")):
        raise UserError(
            f"{directory} holds {path.name} but neither {SINGLE_FILE} nor {INDEX_FILE}; add the "
            "index, or rename a lone file"
        )
    raise UserError(
        f"{directory} holds no weights; it needs {SINGLE_FILE}, or shards with {INDEX_FILE}"
    )


def open_shards(index: Path, spelling: Spelling) -> Checkpoint:
    """Every tensor of every shard that the index names, as transformers loads them: of a tensor in
    two shards the one of the later file name counts. A place where the index is wrong matters only
    to who needs that tensor: `Checkpoint.misplaced` tells."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map from tensor to file; download it again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise UserError(f"{index}: weight_map[{name}] is {shard!r}; it must name a file")
    shards = [index.parent / shard for shard in sorted(set(weight_map.values()))]
    present = tuple(shard for shard in shards if shard.exists())
    if not present:
        raise UserError(
            f"{index.parent} lacks {shards[0].name}, which {index.name} names; download that file"
        )
    entries: dict[str, Entry] = {}
    for shard in present:
        entries |= read_header(shard)
    misplaced = {
        name: index.parent / shard
        for name, shard in weight_map.items()
        if name not in entries
    }
    return Checkpoint(entries, present, misplaced, spelling)


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of one safetensors file: 8 bytes of header length, a JSON header, the data."""
    damaged = f"{path} is not a complete safetensors file"
    try:
        with open(path, "rb") as file:
            start = file.read(max(8, len(GIT_LFS_POINTER)))
            if start.startswith(GIT_LFS_POINTER):
                raise UserError(f"{path} is a git-lfs pointer, not the weights; run `git lfs pull`")
            file_bytes = os.fstat(file.fileno()).st_size
            header_bytes = int.from_bytes(start[:8], "little")
            data_bytes = file_bytes - 8 - header_bytes
            if len(start) < 8 or data_bytes < 0 or header_bytes > MAX_HEADER_BYTES:
                raise UserError(
                    f"{damaged}: of {file_bytes} bytes none hold a whole header; download it again"
                )
            file.seek(8)
            header = json.loads(file.read(header_bytes))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{path} cannot be read ({reason}); check the file") from None
    except (ValueError, RecursionError):
        raise UserError(f"{damaged}: its header is not JSON; download it again") from None
    if not isinstance(header, dict):
        raise UserError(f"{damaged}: its header is not a JSON object; download it again")

    start_of_data = 8 + header_bytes
    entries = {
        name: read_entry(path, name, info, start_of_data)
        for name, info in header.items()
        if name != "__metadata__"
    }
    end = start_of_data
    for entry in sorted(entries.values(), key=lambda entry: (entry.begin, entry.nbytes)):
        if entry.begin != end:
            raise UserError(
                f"{path} is not a valid safetensors file: the tensor {entry.stored_name} overlaps "
                "the one before it, or leaves a gap; download it again"
            )
        end += entry.nbytes
    if end != file_bytes:
        raise UserError(
            f"{damaged}: the header promises {end - start_of_data} bytes of data, there are "
            f"{data_bytes}; download it again"
        )
    return entries


def read_entry(path: Path, name: str, info: object, start_of_data: int) -> Entry:
    """One tensor of a header, whose data starts at that byte of the file."""
    try:
        shape = tuple(info["shape"])  # type: ignore[index]
        element_type = str(info["dtype"])  # type: ignore[index]
        begin, end = info["data_offsets"]  # type: ignore[index]
        consistent = all(type(size) is int and size >= 0 for size in (*shape, begin, end))
        if consistent and element_type in BY_TAG:
            consistent = BY_TAG[element_type].row_bytes(math.prod(shape)) == end - begin
    except (KeyError, TypeError, ValueError):
        consistent = False
    if not consistent:
        raise UserError(
            f"{path} is not a valid safetensors file: its header describes the tensor {name} "
            "inconsistently; download it again"
        )
    return Entry(name, shape, element_type, end - begin, path, start_of_data + begin)


def from_model(model: Any, spelling: Spelling = as_it_is) -> Checkpoint:
    """The same interface over a loaded transformers model; its tensors are used in place."""
    if not callable(getattr(model, "state_dict", None)):
        raise UserError(
            f"the model is a {type(model).__name__}; give a model directory, a Hub id or a loaded "
            "transformers model"
        )
    entries = {}
    for name, tensor in weights_by_name(model).items():
        if tensor.device.type == "meta":
            raise UserError(f"the loaded model has no data for {name}; load its weights first")
        element_type = str(tensor.dtype).removeprefix("torch.")
        entries[name] = Entry(name, tuple(tensor.shape), element_type, tensor.nbytes, tensor=tensor)
    return Checkpoint(entries, spelling=spelling)
