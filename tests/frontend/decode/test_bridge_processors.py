"""generate_with runs transformers' logits processors: the same tokens, over random options."""

from functools import cache

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from test_logits_processors import OPTIONS as RULES
from transformers.generation import logits_process

from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop
from frontend.decode.bridge import generate_with

VOCAB = 12
END = 5
PROMPTS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9), min_size=1,
                   max_size=3)


@cache
def model():
    torch.manual_seed(8)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=VOCAB, max_position_embeddings=128, bos_token_id=1,
        eos_token_id=END, initializer_range=0.3)).eval()


@cache
def decoder():
    return compile_decode_loop(model())


def inputs_of(prompts):
    """Padded on the left."""
    width = max(map(len, prompts))
    padding = [width - len(prompt) for prompt in prompts]
    ids = [[0] * left + prompt for left, prompt in zip(padding, prompts, strict=True)]
    mask = [[0] * left + [1] * (width - left) for left in padding]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@settings(max_examples=60)
@given(PROMPTS, RULES)
def test_greedy_tokens_are_those_of_transformers(prompts, rules):
    if len({*map(len, prompts)}) > 1:
        # to transformers padding is text: its n-grams and prefixes may begin there
        rules = {name: value for name, value in rules.items()
                 if name not in ("no_repeat_ngram_size", "sequence_bias", "bad_words_ids")}
    if rules.get("bad_words_ids") and all(words == [END] for words in rules["bad_words_ids"]):
        del rules["bad_words_ids"]  # transformers fails where none is left
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0,
               **inputs_of(prompts), **rules}
    theirs = model().generate(**options)
    ours = model().generate(**options, custom_generate=generate_with(decoder()))
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("processors, named", [
    ([logits_process.MinLengthLogitsProcessor(8, [2])], "end tokens of MinLength"),
    ([logits_process.SuppressTokensAtBeginLogitsProcessor([2], 9)], "first new token, 3, not at 9"),
    ([logits_process.RepetitionPenaltyLogitsProcessor(1.2, prompt_ignore_length=1)],
     "prompt_ignore_length"),
    ([logits_process.NoRepeatNGramLogitsProcessor(2),
      logits_process.RepetitionPenaltyLogitsProcessor(1.2)], "out of it"),
    ([logits_process.TopKLogitsWarper(3, filter_value=-5.0)], "filter_value of TopKLogitsWarper"),
    ([logits_process.TopPLogitsWarper(0.5, min_tokens_to_keep=2)], "min_tokens_to_keep"),
    ([logits_process.TypicalLogitsWarper(0.5)], "TypicalLogitsWarper"),
    ([logits_process.InfNanRemoveLogitsProcessor()], "InfNanRemoveLogitsProcessor")])
def test_what_no_option_says_is_refused_by_name(processors, named):
    with pytest.raises(UserError, match=named):
        model().generate(torch.tensor([[3, 4, 6]]), max_new_tokens=4, do_sample=False,
                         logits_processor=processors, custom_generate=generate_with(decoder()))


def test_returned_sequences_of_one_prompt_are_drawn_apart():
    torch.manual_seed(3)
    options = {"max_new_tokens": 12, "do_sample": True, "num_return_sequences": 8,
               "min_new_tokens": 12, "custom_generate": generate_with(decoder())}
    rows = model().generate(torch.tensor([[3, 4, 6]]), **options).tolist()
    assert len(set(map(tuple, rows))) == 8
    torch.manual_seed(3)
    assert model().generate(torch.tensor([[3, 4, 6]]), **options).tolist() == rows
