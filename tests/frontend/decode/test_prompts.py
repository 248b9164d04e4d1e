"""Prompts of every kind that transformers takes give its ids; the rest is refused by name."""

import array
from collections import UserString, deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop
from frontend.decode.prompts import read_prompt, read_prompts
from frontend.model_files.resolve import resolve_model
from frontend.model_files.tokenizer import load_tokenizer

VOCAB = 100
KINDS = {  # what may be made of a list of ids
    "list": list, "tuple": tuple, "deque": deque,
    "array": lambda ids: array.array("q", ids),
    "numpy int8": lambda ids: np.array(ids, np.int8),
    "numpy >u2": lambda ids: np.array(ids, ">u2"),
    "numpy uint64": lambda ids: np.array(ids, np.uint64),
    "torch uint8": lambda ids: torch.tensor(ids, dtype=torch.uint8),
    "torch int32": lambda ids: torch.tensor(ids, dtype=torch.int32),
    "torch strided": lambda ids: torch.tensor([[i, 0] for i in ids])[:, 0],
    "list of numpy": lambda ids: [np.int16(i) for i in ids],
    "list of torch": lambda ids: [torch.tensor(i) for i in ids],
    "dict": lambda ids: {"input_ids": ids},
    "BatchEncoding": lambda ids: transformers.BatchEncoding(
        {"input_ids": torch.tensor(ids), "attention_mask": torch.ones(len(ids)),
         "token_type_ids": [0] * len(ids)})}
prompts = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9)


@pytest.fixture(scope="module")
def theirs():
    return transformers.AutoTokenizer.from_pretrained(resolve_model("demo"))


@pytest.fixture(scope="module")
def holder():
    """What a decoder is to a prompt."""
    return SimpleNamespace(tokenizer=load_tokenizer(Path(resolve_model("demo"))),
                           config=SimpleNamespace(vocab_size=5000))


@given(ids=prompts, kind=st.sampled_from(sorted(KINDS)))
def test_ids_of_any_kind_are_one_prompt(holder, ids, kind):
    assert read_prompts(holder, KINDS[kind](ids)) == ([ids], False)
    assert read_prompt(holder, KINDS[kind](ids)) == ids


@given(batch=st.lists(prompts, min_size=1, max_size=4), kind=st.sampled_from(sorted(KINDS)))
def test_lists_of_any_kind_are_a_batch(holder, batch, kind):
    assert read_prompts(holder, [KINDS[kind](ids) for ids in batch]) == (batch, True)


@given(texts=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3),
       tensors=st.sampled_from([None, "np", "pt"]))
def test_what_a_tokenizer_returns_is_read_with_its_mask(holder, theirs, texts, tensors):
    ids = [theirs(text).input_ids for text in texts]
    theirs.pad_token, theirs.padding_side = theirs.eos_token, "left"
    padded = theirs(texts, return_tensors=tensors, padding=True, return_special_tokens_mask=True)
    assert read_prompts(holder, padded) == (ids, True)
    assert read_prompts(holder, dict(padded)) == (ids, True)
    assert read_prompts(holder, texts) == (ids, True)
    alone = [theirs(text, return_tensors=tensors) for text in texts]
    assert read_prompts(holder, alone) == (ids, True)
    assert read_prompt(holder, alone[0]) == read_prompt(holder, texts[0]) == ids[0]
    assert read_prompts(holder, padded.encodings) == (ids, True)


def test_a_range_and_a_table_are_read(holder):
    assert read_prompts(holder, range(3, 9, 2)) == ([[3, 5, 7]], False)
    for table in (np.arange(6).reshape(2, 3), torch.arange(6).reshape(2, 3)):
        assert read_prompts(holder, table) == ([[0, 1, 2], [3, 4, 5]], True)


REFUSED = {
    "is None": None, "is a bytes; decode": b"ab", "is a bytearray": bytearray(b"ab"),
    "is a memoryview": memoryview(b"ab"), r"is an UserString; .* str\(": UserString("ab"),
    "prompt 0 is an UserString": [UserString("ab")], "is a set; a set has no order": {1, 2},
    "is a generator; it can be read only once": (i for i in (1, 2)),
    "is a map": map(int, "12"), "is a dict_keys": {1: 2}.keys(), r"is 5 \(int\)": 5,
    r"is True \(bool\)": True, r"is 2.5 \(float\)": 2.5, "single number": np.int64(5),
    "is a single number": torch.tensor(5), "of torch.float32": torch.tensor([1.0]),
    "of float64": np.ones(2), "of bool": np.ones(2, bool), "of torch.bool": torch.ones(2) > 0,
    "of object": np.array([1, None]), "3 axes": torch.ones(1, 1, 2, dtype=torch.int),
    "values cannot be read": torch.ones(2, dtype=torch.int, device="meta"),
    "is a Path|is a PosixPath": Path("x"), "token 1 is 2.0": [1, 2.0],
    "token 0 is True": [True, 2], "token 1 is nan": [1, float("nan")],
    "token 1 is a Tensor": [torch.tensor(1), torch.tensor(1.0)],
    "token 0 is a bool": [np.bool_(False)], "prompt 0 is None": [None],
    "mixes NoneType and numbers": [1, None], "mixes numbers and text": ["a", 1],
    "mixes lists of ids and text": [[1], "a"], "mixes lists of ids and numbers": [1, [2]],
    "prompt 0 is a bytes": [b"a"], "prompt 0 holds prompts itself": [[[1, 2]]],
    "prompt 1 holds prompts itself": [[1], ["a", "b"]], "mixes lists of ids and set": [[1], {2}],
    "prompt 1 is a bytearray": [[1], bytearray(b"x")],
    "prompt is empty": [], "prompt 1 is empty": [[1], []], "batch is empty": np.ones((0, 3), int),
    "prompt 0 is empty": torch.ones((2, 0), dtype=torch.int),
    "the prompt is empty": "", "without token ids under input_ids": {"role": "user"},
    "prompt 0 is a dict without": [{"role": "user", "content": "x"}],
    "a dict without": {"input_ids": "text"}, "has pixel_values": {"input_ids": [1],
                                                                  "pixel_values": [1.0]},
    "has token_type_ids": {"input_ids": [1, 2], "token_type_ids": [0, 1]},
    "not padding on the left": {"input_ids": [1, 2, 0], "attention_mask": [1, 1, 0]},
    "prompt 1: its attention_mask hides": {"input_ids": torch.ones(2, 3, dtype=torch.int),
                                           "attention_mask": [[0, 1, 1], [1, 0, 1]]},
    "not a 0 or a 1": {"input_ids": [1, 2], "attention_mask": [1, 2]},
    "for each of its 2 ids": {"input_ids": [1, 2], "attention_mask": [1]},
    "2 rows of input_ids and 1": {"input_ids": [[1], [2]], "attention_mask": [[1]]},
    "attention_mask holds 1 .int.": {"input_ids": [[1]], "attention_mask": [1]},
    "the prompt is empty; give at least one token": {"input_ids": [1], "attention_mask": [0]},
    "prompt 1: id 5000 is outside the vocabulary": [[1], [5000]], "id -1 is outside": [-1]}


@pytest.mark.parametrize("message", REFUSED)
def test_the_rest_is_refused_by_name(holder, message):
    with pytest.raises(UserError, match=message) as caught:
        read_prompts(holder, REFUSED[message])
    assert ";" in str(caught.value) and "\n" not in str(caught.value)


@given(st.recursive(st.one_of(st.none(), st.booleans(), st.floats(), st.integers(-3, 9),
                              st.text(max_size=2), st.binary(max_size=2), st.complex_numbers()),
                    lambda inner: st.one_of(st.lists(inner, max_size=3), st.tuples(inner),
                                            st.dictionaries(st.sampled_from(
                                                ["input_ids", "attention_mask", "x"]), inner)),
                    max_leaves=8))
def test_whatever_is_given_is_read_or_refused(holder, prompt):
    try:
        rows, is_batch = read_prompts(holder, prompt)
    except UserError:
        return
    assert rows and all(type(token) is int for ids in rows for token in ids)
    assert isinstance(prompt, (str, list, tuple, dict)) and (is_batch or len(rows) == 1)


def test_one_prompt_is_wanted_where_one_is_read(holder):
    assert read_prompt(holder, [[4, 5]]) == [4, 5]
    with pytest.raises(UserError, match="one prompt is wanted here, and there are 2"):
        read_prompt(holder, [[4], [5]])


def test_no_prompt_needs_an_import_of_torch(run_command):
    code = ("import sys; from types import SimpleNamespace as S\n"
            "from frontend.decode.prompts import read_prompts\n"
            "import numpy as np\n"
            "read_prompts(S(tokenizer=None, config=S(vocab_size=9)), [np.array([1, 2])])\n"
            "assert not {'torch', 'transformers', 'tokenizers'} & set(sys.modules)")
    assert run_command(code=code).returncode == 0


@pytest.fixture(scope="module")
def demo():
    return compile_decode_loop("demo")


def test_a_decoder_reads_them_all_alike(demo, theirs):
    text = "kernel:"
    ids = theirs(text).input_ids
    encoded = theirs(text, return_tensors="pt")
    expected = demo.generate(ids, max_new_tokens=5).output_ids
    for prompt in (text, tuple(ids), np.array(ids), encoded.input_ids[0], theirs(text)):
        result = demo.generate(prompt, max_new_tokens=5)
        assert (result.prompt_ids, result.output_ids) == (ids, expected)
        assert [t.id for t in demo.stream(prompt, max_new_tokens=5)] == expected
        assert np.array_equal(demo.logits(prompt, last=2), demo.logits(ids, last=2))
    for batch in ([text], encoded, encoded.input_ids, [encoded]):
        [result] = demo.generate(batch, max_new_tokens=5)
        assert result.output_ids == expected
        assert [t.id for t in demo.stream(batch, max_new_tokens=5)] == expected


def test_none_is_the_default(demo):
    names = ("max_new_tokens", "ignore_eos", "stop", "trace_steps", "temperature", "top_k", "top_p",
             "min_p", "repetition_penalty", "seed", "logprobs")
    given, left_out = (demo.generate("kernel:", **dict.fromkeys(names)), demo.generate("kernel:"))
    assert (given.output_ids, given.sampling) == (left_out.output_ids, left_out.sampling)
    for token in demo.stream("kernel:", max_new_tokens=None, ignore_eos=None, stop=None,
                             result=None, keep_cache=None, seed=None):
        assert token.id == left_out.output_ids[0]
        break
    assert len(demo.logits([1, 2], last=None)) == 2


def test_a_text_is_one_stop_string(demo):
    whole = demo.generate("hacker:", max_new_tokens=40).text
    stop = whole[9:12]
    assert demo.generate("hacker:", max_new_tokens=40, stop=stop).text == whole[:whole.index(stop)]


@pytest.mark.parametrize("name, values", {
    "max_new_tokens": ("5", 2.5, 5.0, True, float("nan"), [1], np.float32(2), 0, -1, np.bool_(1)),
    "ignore_eos": ("yes", 1, 0.0, []), "trace_steps": (1.0, "1", -1, True),
    "stop": (5, b"x", [1], {"x"}, [None], "", [""]),
    "temperature": ("hot", True, [0.5], float("nan"), float("inf"), -1, 10**400, 1j),
    "top_k": (2.5, "3", True, -1), "top_p": ("1", 1.5), "min_p": (b"", 2),
    "repetition_penalty": ([], 0), "seed": (1.5, "1", -1, 2**63), "logprobs": ("no", 1),
    "keep_cache": (1, "x"), "result": ([], "x"), "temprature": (None, 1)}.items())
def test_options_of_wrong_types_are_refused_by_name(demo, name, values):
    ask = demo.stream if name in ("keep_cache", "result") else demo.generate
    for value in values:
        with pytest.raises(UserError, match=name if value not in ("", [""]) else "stop"):
            ask("kernel:", **{"max_new_tokens": 1, name: value})


@pytest.mark.parametrize("options", [
    {"max_new_tokens": np.int64(3), "temperature": np.float32(0.5), "seed": np.uint8(4)},
    {"max_new_tokens": torch.tensor(3), "logprobs": np.bool_(True), "seed": np.int32(5)}])
def test_numbers_of_array_libraries_are_numbers(demo, options):
    plain = {name: value.item() for name, value in options.items()}
    assert demo.generate("kernel:", **options).output_ids == demo.generate(
        "kernel:", **plain).output_ids


@pytest.mark.parametrize("last", ["1", 1.5, True, 0, 3])
def test_a_wrong_number_of_logits_is_refused(demo, last):
    with pytest.raises(UserError, match="last is"):
        demo.logits([1, 2], last=last)
