"""Prompts as people give them: text, token ids, arrays of ids, and what tokenizers return.

What transformers takes is taken; the rest is refused by name, and nothing is rounded or guessed.
Arrays and tensors are known by what they can do, so that none of their libraries is imported.
"""

from __future__ import annotations

import operator
import re
from collections import UserString
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from numbers import Number
from typing import Any

from event_tensor.errors import UserError
from frontend.decode.served import Served

Encode = Callable[[str], list[int]]
Rows = tuple[list[list[int]], bool]  # ids of each prompt, and whether they came as a batch
TAKEN = "give a text, token ids as a list or an integer tensor, or what a tokenizer returns"
BYTES = (bytes, bytearray, memoryview)
REMEDIES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (BYTES, "decode it to a text, or give a list of token ids"),
    (UserString, "give its text, str(…)"),
    (Set, "a set has no order; give a list"),
    (Iterator, "it can be read only once; give a list of it"))
# keys of a BatchEncoding that describe its text and change no token
DESCRIPTIONS = ("special_tokens_mask", "offset_mapping", "length")


def read_prompts(decoder: Served, prompt: Any) -> Rows:
    """The ids of every prompt given, and whether that was a batch: a list or a table of prompts.

    One prompt is a text, a list, tuple, range or array of ids, a dict or BatchEncoding with
    `input_ids`, or a `tokenizers.Encoding`; padding on the left goes by its `attention_mask`.

    Raises UserError for anything else, for an empty prompt or batch, for ids outside the
    vocabulary, and for text where the model has no tokenizer.
    """
    def encode(text: str) -> list[int]:
        if decoder.tokenizer is None:
            raise UserError("this model has no tokenizer; give the prompt as token ids "
                            "(--prompt-ids 1,2,3)")
        return decoder.tokenizer.encode(text)

    rows, is_batch = read(prompt, encode, "the prompt")
    if not rows:
        raise UserError("the batch is empty; give at least one prompt")
    for number, ids in enumerate(rows):
        name = f"prompt {number}" if is_batch else "the prompt"
        check_ids(ids, decoder.config.vocab_size, name)
    return rows, is_batch


def read_prompt(decoder: Served, prompt: Any) -> list[int]:
    """The ids of one prompt; a batch of one is one. Otherwise as `read_prompts`."""
    rows, _ = read_prompts(decoder, prompt)
    if len(rows) != 1:
        raise UserError(f"one prompt is wanted here, and there are {len(rows)}; give them one by "
                        f"one, or all to generate")
    return rows[0]


def check_ids(ids: Sequence[int], vocab_size: int, name: str) -> None:
    if not ids:
        raise UserError(f"{name} is empty; give at least one token")
    bad = next((token for token in ids if not 0 <= token < vocab_size), None)
    if bad is not None:
        raise UserError(f"{name}: id {bad} is outside the vocabulary of {vocab_size} tokens; give "
                        f"ids from 0 to {vocab_size - 1}")


def read(prompt: Any, encode: Encode, name: str) -> Rows:
    if isinstance(prompt, str):
        return [encode(prompt)], False
    if isinstance(prompt, Mapping):
        return read_encoding(prompt, encode, name)
    if type(prompt).__module__.partition(".")[0] == "tokenizers" and hasattr(prompt, "ids"):
        return [without_padding(prompt.ids, prompt.attention_mask, name)], False
    if is_array(prompt):
        return read_array(prompt, name)
    if isinstance(prompt, Sequence) and not isinstance(prompt, (*BYTES, UserString)):
        return read_list(prompt, encode, name)
    remedy = next((remedy for kind, remedy in REMEDIES if isinstance(prompt, kind)), TAKEN)
    raise UserError(f"{name} is {spelled(prompt)}; {remedy}")


def read_list(items: Sequence[Any], encode: Encode, name: str) -> Rows:
    """A list of ids is one prompt, a list of prompts of one kind is a batch."""
    if not len(items):
        raise UserError(f"{name} is empty; give at least one token")
    kinds = {kind_of(item) for item in items}
    if len(kinds) > 1:
        raise UserError(f"{name} mixes {' and '.join(sorted(kinds))}; give token ids alone, or "
                        f"prompts of one kind")
    if kinds == {"numbers"}:
        return [[read_id(item, place, name) for place, item in enumerate(items)]], False
    rows = []
    for number, item in enumerate(items):
        parts, is_batch = read(item, encode, f"prompt {number}")
        is_table = not isinstance(item, Sequence) and len(parts) == 1  # of a tokenizer, one row
        if is_batch and not is_table:
            raise UserError(f"prompt {number} holds prompts itself; give a flat list of prompts")
        rows += parts
    return rows, True


def kind_of(item: Any) -> str:
    if isinstance(item, str):
        return "text"
    if isinstance(item, Number) or (is_array(item) and item.ndim == 0):
        return "numbers"
    is_prompt = is_array(item) or hasattr(item, "ids") or isinstance(item, (Mapping, Sequence))
    return "lists of ids" if is_prompt else type(item).__name__


def read_id(item: Any, place: int, name: str) -> int:
    if type(item) is int:
        return item
    if isinstance(item, bool) or (is_array(item) and not is_integer(item)):
        raise UserError(f"{name}: token {place} is {spelled(item)}; ids are whole numbers")
    try:
        return operator.index(item)
    except TypeError:
        raise UserError(f"{name}: token {place} is {spelled(item)}; ids are whole numbers"
                        ) from None


def is_array(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("ndim", "dtype", "tolist"))


def is_integer(array: Any) -> bool:
    """Of any integer dtype of numpy, torch or jax; bool is none."""
    dtype = str(getattr(array.dtype, "name", array.dtype)).removeprefix("torch.")
    return re.fullmatch(r"u?int\d+", dtype) is not None


def read_array(array: Any, name: str) -> Rows:
    """[tokens] is one prompt, [prompts, tokens] a batch."""
    if not is_integer(array):
        raise UserError(f"{name} is {spelled(array)} of {array.dtype}; ids are whole numbers, so "
                        f"give an integer dtype")
    if array.ndim == 0:
        raise UserError(f"{name} is a single number; give a list of token ids")
    if array.ndim > 2:
        raise UserError(f"{name} has {array.ndim} axes; give [tokens] or [prompts, tokens]")
    try:
        values = array.tolist()
        rows = [values] if array.ndim == 1 else values
        return [[operator.index(token) for token in row] for row in rows], array.ndim == 2
    except (RuntimeError, TypeError, NotImplementedError) as error:  # meta, sparse, masked
        reason = str(error).partition("\n")[0]
        raise UserError(f"{name} is {spelled(array)} whose values cannot be read ({reason}); "
                        f"{TAKEN}") from None


def read_encoding(encoding: Mapping[str, Any], encode: Encode, name: str) -> Rows:
    """What a tokenizer returns: input_ids, and the mask that tells which of them is padding."""
    if "input_ids" not in encoding or isinstance(encoding["input_ids"], (str, Mapping)):
        raise UserError(f"{name} is {spelled(encoding)} without token ids under input_ids; {TAKEN} "
                        f"(messages of a conversation go through its chat template)")
    for key, value in encoding.items():
        is_read = key in ("input_ids", "attention_mask", *DESCRIPTIONS) or value is None
        # these models have one segment, which a tokenizer counts as 0
        if not is_read and not (key == "token_type_ids" and is_zero(value)):
            raise UserError(f"{name} has {key}, which the megakernel does not read; leave it out")
    rows, is_batch = read(encoding["input_ids"], encode, name)
    mask = encoding.get("attention_mask")
    if mask is None:
        return rows, is_batch
    masks = [values(row) for row in values(mask)] if is_batch else [values(mask)]
    if len(masks) != len(rows):
        raise UserError(f"{name} has {len(rows)} rows of input_ids and {len(masks)} of "
                        f"attention_mask; give one for each")
    return [without_padding(ids, row, f"prompt {number}" if is_batch else name)
            for number, (ids, row) in enumerate(zip(rows, masks, strict=True))], is_batch


def values(row: Any) -> list[Any]:
    listed = row.tolist() if is_array(row) else row
    if not isinstance(listed, (list, tuple)):
        raise UserError(f"the attention_mask holds {spelled(row)}; give it in the shape of "
                        f"input_ids")
    return list(listed)


def is_zero(value: Any) -> bool:
    if is_array(value):
        value = value.tolist()
    return all(map(is_zero, value)) if isinstance(value, (list, tuple)) else value == 0


def without_padding(ids: Sequence[int], mask: Sequence[Any], name: str) -> list[int]:
    """The ids behind the padding on their left.

    >>> without_padding([0, 0, 7, 8], [0, 0, 1, 1], "the prompt")
    [7, 8]

    Raises UserError for a mask that hides anything else.
    """
    if len(mask) != len(ids) or any(bit not in (0, 1) for bit in mask):
        raise UserError(f"{name}: its attention_mask is not a 0 or a 1 for each of its {len(ids)} "
                        f"ids; give one, or leave it out")
    padding = next((place for place, bit in enumerate(mask) if bit), len(mask))
    if not all(mask[padding:]):
        raise UserError(f"{name}: its attention_mask hides ids that are not padding on the left; "
                        f"pad with padding_side='left'")
    return list(ids[padding:])


def spelled(value: Any) -> str:
    """A value for a message: itself where that is short, else its type."""
    if value is None or isinstance(value, Number):
        return f"{value} ({type(value).__name__})" if value is not None else "None"
    kind = type(value).__name__
    return f"an {kind}" if kind[0].lower() in "aeiou" else f"a {kind}"
