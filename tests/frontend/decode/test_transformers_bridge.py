"""model.generate(custom_generate=…) gives transformers' own tokens; its streamers take ours."""

import threading

import pytest
import torch
import transformers
from conftest import HANG_S

from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop
from frontend.decode.bridge import generate_with, stream_into
from frontend.model_files.resolve import resolve_model

PROMPT = torch.tensor([[5, 91, 17, 4, 250, 33]])
END = 7


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(3)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=301, max_position_embeddings=512, eos_token_id=END,
        pad_token_id=0, initializer_range=0.2)).eval()


@pytest.fixture(scope="module")
def decoder(tiny):
    return compile_decode_loop(tiny)


def both(model, decoder, *inputs, **options):
    ours = model.generate(*inputs, **options, custom_generate=generate_with(decoder))
    return ours.tolist(), model.generate(*inputs, **options).tolist()


@pytest.mark.parametrize("options", [
    {"max_new_tokens": 30}, {"max_length": 20}, {"max_new_tokens": 1},
    {"max_new_tokens": 30, "repetition_penalty": 1.6},
    {"max_new_tokens": 30, "do_sample": True, "top_k": 1},
    {"max_new_tokens": 30, "eos_token_id": list(range(8, 24)), "pad_token_id": None},
    {"max_new_tokens": 9, "eos_token_id": -1}, {"max_new_tokens": 9, "eos_token_id": 99999},
    {"max_new_tokens": 9, "eos_token_id": [-1, *range(8, 90)][:24], "min_new_tokens": 4}])
def test_tokens_are_those_of_transformers(tiny, decoder, options):
    ours, theirs = both(tiny, decoder, PROMPT, **options)
    assert ours == theirs


def test_padded_prompts_of_several_lengths_each_end_on_their_own(tiny, decoder):
    ids = torch.randint(8, 300, (5, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 10, 7, 0)):
        ids[row, :padding], mask[row, :padding] = 0, 0
    # an end token that comes early in some rows: their output is padded as transformers pads it
    first = tiny.generate(ids, attention_mask=mask, max_new_tokens=12, eos_token_id=None)
    end = int(first[1, 11 + 3])
    tiny.generation_config.eos_token_id = end
    try:
        ending = compile_decode_loop(tiny)
        ours, theirs = both(tiny, ending, ids, attention_mask=mask, max_new_tokens=12)
    finally:
        tiny.generation_config.eos_token_id = END
    assert ours == theirs
    assert ours[1][11 + 3:] == [end] + [0] * (len(ours[1]) - 11 - 4)


def test_sampling_follows_the_seed_of_torch(tiny, decoder):
    def draw(seed):
        torch.manual_seed(seed)
        return tiny.generate(PROMPT, max_new_tokens=20, do_sample=True, temperature=1.2, top_p=0.9,
                             custom_generate=generate_with(decoder)).tolist()

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("options, named", [
    ({"num_beams": 2}, "num_beams=2"),
    ({"return_dict_in_generate": True}, "return_dict_in_generate"),
    ({"do_sample": True, "typical_p": 0.5}, "TypicalLogitsWarper"),
    ({"max_time": 1.0}, "MaxTimeCriteria")])
def test_what_the_megakernel_does_not_do_is_named(tiny, decoder, options, named):
    with pytest.raises(UserError, match=named):
        tiny.generate(PROMPT, max_new_tokens=4, **options, custom_generate=generate_with(decoder))


def test_streamers_print_the_text_that_transformers_streams(capsys):
    directory = resolve_model("demo")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    decoder = compile_decode_loop(model)
    inputs, options = tokenizer("hacker:", return_tensors="pt"), {"max_new_tokens": 40}
    capsys.readouterr()
    for skip in (False, True):
        streamer = transformers.TextStreamer(tokenizer, skip_prompt=skip)
        model.generate(**inputs, **options, streamer=streamer)
        theirs = capsys.readouterr().out
        model.generate(**inputs, **options, custom_generate=generate_with(decoder, streamer))
        assert capsys.readouterr().out == theirs
        model.generate(**inputs, **options, streamer=streamer,
                       custom_generate=generate_with(decoder))
        assert capsys.readouterr().out == theirs

    words = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=HANG_S)
    thread = threading.Thread(target=stream_into, kwargs=options,
                              args=(words, decoder, inputs.input_ids[0].tolist()))
    thread.start()
    assert "".join(words) + "\n" == theirs
    thread.join()
    with pytest.raises(UserError, match="one prompt"):
        model.generate(inputs.input_ids.repeat(2, 1), **options,
                       custom_generate=generate_with(decoder, streamer))


class Ended(transformers.generation.BaseStreamer):
    ends = 0

    def put(self, value):
        pass

    def end(self):
        self.ends += 1


def test_a_streamer_is_ended_when_a_generation_is_refused(tiny, decoder):
    streamer = Ended()
    with pytest.raises(UserError, match="max_new_tokens"):
        stream_into(streamer, decoder, [1, 2], max_new_tokens=0)
    for ours, theirs in ((streamer, None), (None, streamer)):
        with pytest.raises(UserError, match="num_beams=2|max_time|MaxTime"):
            tiny.generate(PROMPT, max_new_tokens=2, max_time=1.0, streamer=theirs,
                          custom_generate=generate_with(decoder, ours))
    assert streamer.ends == 3
    with pytest.raises(UserError, match="each have a streamer"):
        tiny.generate(PROMPT, max_new_tokens=2, streamer=streamer,
                      custom_generate=generate_with(decoder, Ended()))
