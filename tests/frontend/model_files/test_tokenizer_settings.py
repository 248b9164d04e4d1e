"""Random settings of tokenizer_config.json over several kinds of tokenizer.json: ids and text are
those of `AutoTokenizer`, and the directories that people have need no transformers."""

import json
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from conftest import command_environment
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_tokenizer import SPECIAL, TEXTS, byte_fallback, byte_level
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from event_tensor.errors import UserError
from frontend.model_files import tokenizer as our_tokenizer
from frontend.model_files import tokenizer_class
from frontend.model_files.tokenizer import load_tokenizer

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def digits() -> tokenizers.Tokenizer:
    """As SmolLM2: byte-level, digits apart, ids of special tokens first."""
    tokenizer = byte_level(with_bos=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def unigram() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(TEXTS, trainers.UnigramTrainer(
        vocab_size=200, special_tokens=[*SPECIAL, "<unk>"], unk_token="<unk>",
        show_progress=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return tokenizer


def words() -> tokenizers.Tokenizer:
    vocab = {word: k for k, word in enumerate(
        ["<unk>", *SPECIAL, "Hello", ",", ".", "'", "s", "n't", "world", "!", "the", "quick"])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<unk>", *SPECIAL[:2]])
    return tokenizer


def padded() -> tokenizers.Tokenizer:
    tokenizer = byte_level()
    tokenizer.enable_padding(pad_token="<|filler|>", length=16)
    tokenizer.enable_truncation(4)
    return tokenizer


KINDS = {"byte_level": byte_level, "byte_fallback": byte_fallback, "digits": digits,
         "unigram": unigram, "words": words, "padded": padded}
CLASSES = ["LlamaTokenizer", "LlamaTokenizerFast", "GPT2Tokenizer", "GPT2TokenizerFast",
           "Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend",
           "PreTrainedTokenizer", None]
OTHER_CLASSES = ["GPTNeoXTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "T5Tokenizer",
                 "NoSuchTokenizer"]
MODEL_TYPES = [None, "llama", "qwen2", "qwen3", "qwen3_moe", "mistral", "mixtral"]


@cache
def file_of(kind: str) -> str:
    return str(KINDS[kind]().to_str())


FLAGS = st.fixed_dictionaries({}, optional=dict.fromkeys(
    ("lstrip", "rstrip", "normalized", "single_word", "special"), st.booleans()))
CONTENTS = st.sampled_from([*SPECIAL, "<unk>", "<|end|>", "<|x|>", "world", "<|endoftext|>"])
OBJECTS = st.builds(lambda text, flags: {"__type": "AddedToken", "content": text, **flags},
                    CONTENTS, FLAGS)
TOKENS = CONTENTS | OBJECTS
LISTED = st.lists(st.builds(lambda text, flags: {"content": text, **flags}, CONTENTS, FLAGS),
                  max_size=3).map(lambda found: {str(2 + 300 * k): t for k, t in enumerate(found)})
CONFIGS = st.fixed_dictionaries({}, optional={
    "tokenizer_class": st.sampled_from([*CLASSES, *CLASSES, *OTHER_CLASSES]),
    **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), TOKENS | st.none()),
    "image_token": TOKENS,
    "additional_special_tokens": st.lists(TOKENS, max_size=2) | st.none(),
    "extra_special_tokens": st.lists(CONTENTS, max_size=2) | st.dictionaries(
        st.sampled_from(["audio_token", "eot_token"]), CONTENTS),
    "added_tokens_decoder": LISTED,
    "add_prefix_space": st.booleans() | st.none(),
    "split_special_tokens": st.booleans(),
    "clean_up_tokenization_spaces": st.booleans() | st.none(),
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": st.just(True),
    **dict.fromkeys(("add_bos_token", "add_eos_token"), st.booleans()),
    "legacy": st.booleans() | st.none(),
    "model_max_length": st.just(64),
})
LEGACY_MAPS = st.none() | st.fixed_dictionaries({}, optional={
    **dict.fromkeys(("bos_token", "eos_token"), CONTENTS | st.builds(
        lambda text, flags: {"content": text, **flags}, CONTENTS, FLAGS)),
    "additional_special_tokens": st.lists(CONTENTS, max_size=2)})
PARTS = st.sampled_from([*SPECIAL, "<|end|>", "<|x|>", "<|endoftext|>", "<|filler|>", " ", "  ",
                         "Hello", "world", "don't", " it ' s", "é", "e\u0301", "漢", "😀", "12345",
                         "\n", "!", " ,", "▁"])
PROMPTS = st.lists(st.lists(PARTS, max_size=8).map("".join), min_size=1, max_size=3)


def write(directory: Path, kind: str, config: dict[str, Any], model_type: str | None,
          legacy_map: dict[str, Any] | None = None) -> None:
    (directory / "tokenizer.json").write_text(file_of(kind))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    if model_type:
        (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    if legacy_map is not None:
        (directory / "special_tokens_map.json").write_text(json.dumps(legacy_map))


def check_equal(directory: Path, theirs: Any, texts: list[str]) -> None:
    ours = load_tokenizer(directory)
    assert ours is not None
    assert ours.eos_token_id == theirs.eos_token_id
    for text in texts:
        try:
            ids = theirs(text).input_ids
        except Exception:  # a class whose unknown token the vocabulary lacks
            with pytest.raises(UserError, match="cannot encode"):
                ours.encode(text)
            continue
        assert ours.encode(text) == ids
        assert ours.encode_bare(text) == theirs(text, add_special_tokens=False).input_ids
        for some in (ids, ids[1:], ids[::-1]):
            assert ours.decode(some) == theirs.decode(some, skip_special_tokens=True)
            assert ours.decode_all(some) == theirs.decode(some)


@settings(max_examples=120, suppress_health_check=list(HealthCheck))
@given(kind=st.sampled_from(list(KINDS)), config=CONFIGS, model_type=st.sampled_from(MODEL_TYPES),
       legacy_map=LEGACY_MAPS, texts=PROMPTS)
def test_random_settings_give_the_ids_and_text_of_transformers(kind, config, model_type,
                                                               legacy_map, texts):
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write(directory, kind, config, model_type, legacy_map)
        try:
            theirs = AutoTokenizer.from_pretrained(directory)
        except Exception:  # settings that contradict each other: there is no right value
            return
        check_equal(directory, theirs, texts)


# what tokenizer_config.json of these models says, as far as it counts
COMMON = {
    "SmolLM2": ("digits", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False,
                           "clean_up_tokenization_spaces": False, "vocab_size": 49152}, "llama"),
    "Qwen2.5": ("byte_level", {"tokenizer_class": "Qwen2Tokenizer", "errors": "replace",
                               "split_special_tokens": False, "add_bos_token": False}, "qwen2"),
    "Qwen3": ("byte_level", {"tokenizer_class": "Qwen2Tokenizer", "unk_token": None}, "qwen3"),
    "Llama 3": ("byte_level", {"tokenizer_class": "PreTrainedTokenizerFast",
                               "clean_up_tokenization_spaces": True}, "llama"),
    "Llama 2": ("byte_fallback", {"tokenizer_class": "LlamaTokenizer", "legacy": False,
                                  "sp_model_kwargs": {}, "unk_token": "<unk>"}, "llama"),
    "Mistral": ("byte_fallback", {"tokenizer_class": "LlamaTokenizer", "legacy": False,
                                  "spaces_between_special_tokens": False}, "mistral"),
    "none": ("byte_level", {}, "qwen3"),
}


def test_common_directories_import_no_transformers(tmp_path):
    for name, arguments in COMMON.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name, *arguments)
    code = ("import sys; from pathlib import Path\n"
            "from frontend.model_files.tokenizer import load_tokenizer\n"
            "for path in sys.argv[1:]:\n"
            "    load_tokenizer(Path(path)).encode('Hello')\n"
            "    assert 'transformers' not in sys.modules, path")
    demo = Path(our_tokenizer.__file__).parents[1] / "demo"
    subprocess.run([sys.executable, "-c", code, demo, *map(str, tmp_path.iterdir())], check=True,
                   env=command_environment())


@pytest.mark.parametrize("name", COMMON)
def test_common_directories_give_the_ids_of_transformers(name, tmp_path):
    from transformers import AutoTokenizer

    write(tmp_path, *COMMON[name])
    check_equal(tmp_path, AutoTokenizer.from_pretrained(tmp_path), [*TEXTS, "<|user|>12345</s> x"])


def test_classes_of_model_types_are_those_of_transformers():
    from transformers.models.auto import tokenization_auto as theirs

    for model_type, name in tokenizer_class.CLASS_OF_MODEL_TYPE.items():
        mistral = {"MistralCommonBackend": "TokenizersBackend"}
        found = theirs.TOKENIZER_MAPPING_NAMES.get(model_type)
        assert mistral.get(found, found) == name
        assert (model_type in theirs.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS) == (
            model_type in tokenizer_class.MISNAMED_MODEL_TYPES)
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    assert PRETOKENIZE_REGEX == tokenizer_class.QWEN2_WORDS


def test_files_that_contradict_each_other_are_named(tmp_path):
    write(tmp_path, "words", {"eos_token": {"content": "</s>"}}, "llama")
    with pytest.raises(UserError, match="tokenizer_config.json .*eos_token"):
        load_tokenizer(tmp_path)
