import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from event_tensor.errors import UserError
from frontend.model_files.tokenizer import Tokenizer, from_transformers, load_tokenizer

TEXTS = [
    "",
    "Hello, world! The quick brown fox.",
    "  two leading spaces,\ttabs\n\nand lines  ",
    "漢字とかな交じり文。中文，標點。",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈 joined, flags 🇫🇷🇯🇵",
    "naïve café — Ελληνικά עברית العربية 한국어",
    "mixed 你好 world 🌍 done",
    "a\u0301 combining, \u200d alone, \ufffd itself",
]
SPECIAL = ["<s>", "</s>", "<|user|>"]


def byte_level(with_bos: bool = True) -> tokenizers.Tokenizer:
    """A byte-level BPE with few merges, so that most characters span several tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    if with_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return tokenizer


def byte_fallback() -> tokenizers.Tokenizer:
    """As Llama 2 and Mistral 7B: words begin with ▁, unknown characters are spelled in bytes."""
    bytes_as_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = sorted(set("▁Helo,wrdTquickbrnfxamév.") - set("é"))
    vocab = {token: index for index, token in enumerate(["<unk>", *SPECIAL, *bytes_as_tokens])}
    vocab |= {character: len(vocab) + index for index, character in enumerate(characters)}
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


KINDS = {"byte_level": byte_level, "byte_fallback": byte_fallback}


def save(tokenizer: tokenizers.Tokenizer, directory: Path, **config: Any) -> Path:
    tokenizer.save(str(directory / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(fields))
    return directory


def load(directory: Path) -> Tokenizer:
    tokenizer = load_tokenizer(directory)
    assert tokenizer is not None
    return tokenizer


def check_against_transformers(directory: Path) -> None:
    from transformers import AutoTokenizer

    ours, theirs = load(directory), AutoTokenizer.from_pretrained(directory)
    for text in [*TEXTS, "<|user|>Hello</s> world <s>"]:
        ids = theirs(text).input_ids
        assert ours.encode(text) == ids
        assert ours.encode_bare(text) == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("kind", KINDS)
def test_encodes_and_decodes_as_transformers(kind: str, tmp_path: Path) -> None:
    check_against_transformers(save(KINDS[kind](), tmp_path))


CONFIGS: list[dict[str, Any]] = [
    {"add_bos_token": True, "bos_token": "<s>"},
    {"add_bos_token": True, "add_eos_token": True, "bos_token": {"__type": "AddedToken",
     "content": "<s>", "lstrip": False, "rstrip": False, "single_word": False, "normalized": True}},
    {"add_bos_token": False, "bos_token": "<s>"},
    {"add_bos_token": True, "bos_token": None},
    {"pad_token": "<|pad|>", "additional_special_tokens": ["<|extra|>"]},
    {"added_tokens_decoder": {"900": {"content": "world", "special": False, "lstrip": True}}},
    {"clean_up_tokenization_spaces": True},
]  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("with_bos", [True, False])
def test_tokenizer_config_is_honoured(
    config: dict[str, Any], with_bos: bool, tmp_path: Path
) -> None:
    check_against_transformers(save(byte_level(with_bos), tmp_path, **config))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", None])
@pytest.mark.parametrize(
    "config", [{}, {"legacy": True}, {"legacy": None, "tokenizer_class": "LlamaTokenizerFast"}]
)
def test_the_llama_class_overrides_the_file(
    kind: str, model_type: str | None, config: dict[str, Any], tmp_path: Path
) -> None:
    fields = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "unk_token": "<unk>"}
    save(KINDS[kind](), tmp_path, **fields | config)
    if model_type:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    check_against_transformers(tmp_path)


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    save(tokenizer, tmp_path)
    assert load(tmp_path).encode(TEXTS[1]) == byte_level().encode(TEXTS[1]).ids


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    text_stream = tokenizer.stream()
    pieces = [text_stream.push(token_id) for token_id in ids]
    return [*pieces, text_stream.flush()]


@pytest.mark.parametrize("kind", KINDS)
def test_streamed_text_equals_the_decoded_text(kind: str, tmp_path: Path) -> None:
    tokenizer = load(save(KINDS[kind](), tmp_path))
    for text in [*TEXTS, " ".join(TEXTS), "".join(TEXTS)]:
        ids = tokenizer.encode(text)
        pieces = stream(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_comes_out_whole_with_its_last_token(tmp_path: Path) -> None:
    tokenizer = load(save(byte_level(with_bos=False), tmp_path))
    ids = tokenizer.encode("\U0001f9ff")  # not among the training texts: four bytes, several tokens
    assert len(ids) > 1
    assert stream(tokenizer, ids) == [*[""] * (len(ids) - 1), "\U0001f9ff", ""]
    assert stream(tokenizer, ids[:-1])[-1] == "\ufffd"


def test_any_tokens_stream_to_their_decoded_text(tmp_path: Path) -> None:
    """Random weights emit random bytes: unknown ids, special tokens and broken characters."""
    tokenizer = load(save(byte_level(), tmp_path))
    raw = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    high_bytes = [raw.token_to_id(c) for c in pre_tokenizers.ByteLevel.alphabet() if ord(c) > 160]
    for seed in range(50):
        rng = random.Random(seed)
        choices = high_bytes if seed % 2 else range(raw.get_vocab_size() + 20)
        ids = [rng.choice(choices) for _ in range(300)]
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_goes_on_from_its_prompt(kind: str, tmp_path: Path) -> None:
    """The value is that of transformers: its text of all tokens, wherever the prompt ends."""
    from transformers import AutoTokenizer

    directory = save(KINDS[kind](), tmp_path)
    tokenizer, theirs = load(directory), AutoTokenizer.from_pretrained(directory)
    for text in [*TEXTS, "Hello<|user|> world </s>  and <s>more", "<s><s> Hello"]:
        ids = tokenizer.encode(text)
        whole = theirs.decode(ids, skip_special_tokens=True)
        for split in range(len(ids) + 1):
            # where the prompt ends amid a character, that belongs to the pieces
            texts = [theirs.decode(ids[:k], skip_special_tokens=True) for k in range(split + 1)]
            texts += [text.rstrip("\ufffd") for text in texts]
            before = max((text for text in texts if whole.startswith(text)), key=len)
            stream_of = tokenizer.stream(ids[:split])
            pieces = [stream_of.push(token_id) for token_id in ids[split:]]
            assert before + "".join(pieces) + stream_of.flush() == whole


@pytest.mark.parametrize("endless", ["word", "bytes"])
def test_cost_per_token_does_not_grow(endless: str, tmp_path: Path) -> None:
    whole = load(save(byte_level(with_bos=False), tmp_path))
    decoded_lengths: list[int] = []

    def decode(ids: Any) -> str:
        decoded_lengths.append(len(ids))
        return whole.decode(ids)

    counted = replace(whole, decode=decode)
    ids = whole.encode(" word" if endless == "word" else "\U0001f9ff")[:1] * 2000
    assert "".join(stream(counted, ids)) == whole.decode(ids)
    assert max(decoded_lengths) < 32
    assert len(decoded_lengths) <= 2 * len(ids) + 1


def test_without_tokenizer_json_transformers_builds_one(tmp_path: Path) -> None:
    from transformers import Qwen2Tokenizer

    trained = json.loads(byte_level(with_bos=False).to_str())["model"]
    vocab = trained["vocab"] | {"<|endoftext|>": len(trained["vocab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    merges = "\n".join(" ".join(merge) for merge in trained["merges"])
    (tmp_path / "merges.txt").write_text(merges)
    fields = {"tokenizer_class": "Qwen2Tokenizer", "model_type": "qwen2"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    theirs = Qwen2Tokenizer.from_pretrained(tmp_path)
    for tokenizer in (load(tmp_path), from_transformers(theirs)):
        assert tokenizer.token_id("<|endoftext|>") == theirs.eos_token_id
        assert tokenizer.token_id("no such token") is None
        for text in TEXTS:
            ids = tokenizer.encode(text + "<|endoftext|>")
            assert ids == theirs(text + "<|endoftext|>").input_ids
            assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert load_tokenizer(tmp_path) is None
    with pytest.raises(UserError, match="does not exist"):
        load_tokenizer(tmp_path / "absent")


def test_damaged_tokenizers(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for content, message in (
        ("{", "not valid JSON"),
        ("{}", "is not a tokenizer"),
        ("version https://git-lfs.github.com/spec/v1\n", "git-lfs pointer"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=f"tokenizer.json.*{message}") as caught:
            load_tokenizer(tmp_path)
        assert "\n" not in str(caught.value)
    save(byte_level(), tmp_path, added_tokens_decoder={"x": 1})
    with pytest.raises(UserError, match="tokenizer_config.json.*cannot read"):
        load_tokenizer(tmp_path)
    path.unlink()
    (tmp_path / "tokenizer.model").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="no tokenizer.json, and transformers cannot load"):
        load_tokenizer(tmp_path)


def test_a_prompt_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not UTF-8"):
        load(save(byte_level(), tmp_path)).encode("bytes \udcff")
