"""Where a request ends: the model's end tokens, the tokenizer's, the template's, those asked for,
and stop strings with special tokens in them."""

import json
from itertools import compress, takewhile

import numpy as np
import pytest
import tokenizers
import torch
from chat_model import CHATML, write_chat_model
from hypothesis import given
from hypothesis import strategies as st
from test_tokenizer import SPECIAL, byte_level, load, save

from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop
from frontend.config.sampling import Sampling
from frontend.decode.end_tokens import MAX_END_TOKENS, end_of_turn, own_eos_ids
from frontend.decode.request_options import RunOptions
from frontend.decode.watcher import ShownText

PROMPT = "w1 w2 w3"
COUNT = 12


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("ends"))


@pytest.fixture(scope="module")
def decoder(directory):
    return compile_decode_loop(directory, workers=2)


@pytest.fixture(scope="module")
def plain(decoder):
    """The greedy continuation, which no token ends."""
    return decoder.generate(PROMPT, max_new_tokens=COUNT)


def new_token(ids, start):
    """The first place from `start` on whose token has not occurred before."""
    return next(k for k in range(start, len(ids)) if ids[k] not in ids[:k])


@pytest.fixture
def with_special(directory, decoder, tmp_path, monkeypatch):
    """`with_special(id, …)`: the decoder with a tokenizer to which these tokens are special."""
    def change(*ids, template=CHATML, **config):
        tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
        tokenizer.add_special_tokens([tokenizer.id_to_token(token_id) for token_id in ids])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", **config}))
        (tmp_path / "chat_template.jinja").write_text(template)
        monkeypatch.setattr(decoder, "tokenizer", load(tmp_path))
        return decoder

    return change


def test_a_special_token_as_stop_string_ends_the_device_at_once(plain, with_special):
    at = new_token(plain.output_ids, 3)
    token_id = plain.output_ids[at]
    decoder = with_special(token_id)
    for options in ({}, {"ignore_eos": True}, {"eos_token_id": token_id}):
        result = decoder.generate(PROMPT, max_new_tokens=200, stop=[f"w{token_id - 6}"], **options)
        assert result.output_ids == plain.output_ids[:at + 1]
        assert result.finish_reason == "stop"
        assert result.text == "".join(f" w{k - 6}" for k in plain.output_ids[:at])
        assert int(decoder._launches.control.length[0]) == len(result.prompt_ids) + at + 1


def test_a_stop_string_may_span_special_tokens_and_text(plain, with_special):
    at = new_token(plain.output_ids, 3)
    words = [f" w{k - 6}" for k in plain.output_ids]
    decoder = with_special(plain.output_ids[at])
    stop = "".join(words[at:at + 2])
    for strings in ([stop], [words[at - 1][-1:] + stop], [stop[1:]]):
        pieces = [token.text for token in decoder.stream(PROMPT, max_new_tokens=COUNT,
                                                         stop=strings)]
        result = decoder.generate(PROMPT, max_new_tokens=COUNT, stop=strings)
        assert (result.text, result.finish_reason) == ("".join(pieces), "stop")
        cut = len(strings[0]) - len(stop) if len(strings[0]) > len(stop) else 0
        assert result.text == "".join(words[:at])[:-cut or None]
    never = decoder.generate(PROMPT, max_new_tokens=COUNT, stop=[stop + "!"])
    assert never.text == "".join(words[:at] + words[at + 1:])
    assert never.finish_reason == "length"


@given(data=st.data(), ids=st.lists(st.integers(0, 339), min_size=1, max_size=12))
def test_streamed_stop_strings_cut_where_the_whole_text_would_be(data, ids, tmp_path_factory):
    tokenizer = byte_level_tokenizer(tmp_path_factory)
    whole = tokenizer.decode_all(ids)
    is_shown = []
    for token_id in ids:
        piece = tokenizer.decode_all([token_id])
        is_shown += [piece not in SPECIAL] * len(piece)
    if len(is_shown) != len(whole) or "\ufffd" in whole:  # bytes that make characters together
        return
    first = data.draw(st.integers(0, len(whole) - 1))
    stop = whole[first:first + data.draw(st.integers(1, 12))]
    text = ShownText(tokenizer, [], RunOptions(1, True, [stop, "no such"], Sampling()))
    pieces = [text.push(token_id) for token_id in ids]
    cut = whole[:whole.index(stop)]
    assert "".join(pieces) + text.flush() == "".join(compress(cut, is_shown))
    assert text.stopped
    assert text.push(ids[0]) == text.flush() == ""


def byte_level_tokenizer(tmp_path_factory, made=[]):  # noqa: B006  # one for all examples
    if not made:
        made.append(load(save(byte_level(), tmp_path_factory.mktemp("bytes"))))
    return made[0]


def test_the_tokenizers_own_end_token_ends_the_text(plain, with_special):
    at = new_token(plain.output_ids, 2)
    token_id = plain.output_ids[at]
    decoder = with_special(token_id, eos_token=f"w{token_id - 6}")
    assert own_eos_ids(decoder) == (1, token_id)
    result = decoder.generate(PROMPT, max_new_tokens=COUNT)
    assert (result.output_ids, result.finish_reason) == (plain.output_ids[:at + 1], "eos")
    assert decoder.generate(PROMPT, max_new_tokens=COUNT, eos_token_id=1).output_ids == (
        plain.output_ids)
    assert decoder.generate(PROMPT, max_new_tokens=COUNT, ignore_eos=True).output_ids == (
        plain.output_ids)


def test_given_end_ids_replace_the_models(plain, decoder):
    for at in (new_token(plain.output_ids, k) for k in (0, 2, 4)):
        end = plain.output_ids[at]
        for given_ids in (end, [end], (0, end), np.array([end, 2]), torch.tensor(end)):
            result = decoder.generate(PROMPT, max_new_tokens=COUNT, eos_token_id=given_ids)
            assert (result.output_ids, result.finish_reason) == (plain.output_ids[:at + 1], "eos")


@pytest.mark.parametrize("ids", [-1, 300, [1, 300], [], True, 1.0, "1", [[1]], [None], [1, [2]]])
def test_what_is_no_token_of_the_vocabulary_is_refused(decoder, ids):
    with pytest.raises(UserError, match="eos_token_id is .* from 0 to 299"):
        decoder.generate(PROMPT, max_new_tokens=1, eos_token_id=ids)


def test_more_end_tokens_than_the_device_looks_for_are_refused(decoder):
    many = list(range(MAX_END_TOKENS))
    assert decoder.generate(PROMPT, max_new_tokens=1, eos_token_id=many).output_ids
    with pytest.raises(UserError, match=f"{MAX_END_TOKENS} different tokens at most"):
        decoder.generate(PROMPT, max_new_tokens=1, eos_token_id=[*many, 99])


def test_a_conversation_ends_at_the_templates_end_of_turn(directory, decoder, with_special):
    words = [f"w{token.id - 6}" for token in decoder.chat().send("w9", max_new_tokens=COUNT)]
    end = words[new_token(words, 2)]
    stale = CHATML.replace("<|im_end|>", f" {end}")
    changed = with_special(int(end[1:]) + 6, template=stale)
    conversation = changed.chat()
    assert conversation._end_ids == (1, int(end[1:]) + 6)
    answer = "".join(token.text for token in conversation.send("w9", max_new_tokens=200))
    assert conversation.last.finish_reason == "eos"
    assert answer.split() == list(takewhile(lambda word: word != end, answer.split()))
    assert not answer.startswith(" ")
    for _ in conversation.send("w9", max_new_tokens=COUNT, eos_token_id=[0]):
        pass
    assert conversation.last.finish_reason == "length"


TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>"),
    "end after a space": ("{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]"
                          "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
                          "</s>"),
    "next message": ("{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}",
                     "<|user|>"),
    "text": ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", None),
    "last message": ("{{ messages[-1].content }}", None),
    "refusal": ("{{ raise_exception('one message only') }}", None),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_turn_is_read_from_the_template(name, tmp_path):
    template, expected = TEMPLATES[name]
    save(byte_level(), tmp_path, extra_special_tokens=["<|im_end|>", "<|im_start|>"])
    (tmp_path / "chat_template.jinja").write_text(template)
    tokenizer = load(tmp_path)
    found = end_of_turn(tokenizer, tokenizer.chat_template())
    assert found == (tokenizer.token_id(expected) if expected else None)


def test_end_ids_on_the_command_line(command, directory, plain):
    at = new_token(plain.output_ids, 3)
    arguments = ("generate", directory, "--prompt", PROMPT, "--max-new-tokens", COUNT, "--json")
    done = command(*arguments, "--eos-token-id", f"0,{plain.output_ids[at]}")
    record = json.loads(done.stdout)
    assert (record["output_ids"], record["finish_reason"]) == (plain.output_ids[:at + 1], "eos")
    for text, word in (("1,x", "--eos-token-id"), ("300", "299")):
        done = command(*arguments, "--eos-token-id", text)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert word in done.stderr
    assert command("chat", directory, "--eos-token-id", "x").returncode == 2


def test_the_streams_text_is_that_of_all_tokens(decoder, plain):
    """A word keeps the space before it; transformers' decode of prompt and output has it."""
    whole = decoder.tokenizer.decode([*plain.prompt_ids, *plain.output_ids])
    assert PROMPT + plain.text == whole
    pieces = [token.text for token in decoder.stream(PROMPT, max_new_tokens=COUNT)]
    assert "".join(pieces) == plain.text
