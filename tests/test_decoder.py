"""The decoder's own contract: streams, early ends, one launch at a time."""

import pytest

from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop


@pytest.fixture(scope="module")
def decoder(tiny_model):
    return compile_decode_loop(tiny_model("llama"), workers=2)


def test_a_stream_gives_what_generate_gives(decoder):
    tokens = [token.id for token in decoder.stream([3, 1, 4], max_new_tokens=20, ignore_eos=True)]
    assert tokens == decoder.generate([3, 1, 4], max_new_tokens=20, ignore_eos=True).output_ids


def test_leaving_a_stream_early_ends_the_launch(decoder):
    stream = decoder.stream([3, 1, 4], max_new_tokens=100, ignore_eos=True)
    first = next(stream)
    stream.close()
    again = decoder.generate([3, 1, 4], max_new_tokens=1, ignore_eos=True)
    assert again.output_ids == [first.id]


def test_a_stream_that_was_never_started_holds_nothing(decoder):
    stream = decoder.stream([3, 1, 4])
    assert decoder.generate([3], max_new_tokens=2, ignore_eos=True).output_ids
    del stream
    assert len(decoder.logits([3, 1])) == 2


def test_two_streams_at_once_are_refused(decoder):
    stream = decoder.stream([3, 1, 4], max_new_tokens=100, ignore_eos=True)
    next(stream)
    with pytest.raises(UserError, match="generating already"):
        decoder.generate([3], max_new_tokens=1)
    stream.close()


def test_mistakes_are_found_before_the_launch(decoder):
    launches = decoder.kernel.launches
    for prompt, new_tokens, word in (([], 1, "empty"), ([10**6], 1, "vocabulary"),
                                     ([1], 0, "max_new_tokens"), ([1], 10**6, "max_context")):
        with pytest.raises(UserError, match=word):
            decoder.stream(prompt, max_new_tokens=new_tokens)
    assert decoder.kernel.launches == launches


def test_a_generation_is_one_launch_whatever_its_length(decoder):
    launches = decoder.kernel.launches
    decoder.generate(list(range(200)), max_new_tokens=8, ignore_eos=True)
    assert decoder.kernel.launches == launches + 1 and decoder.compilations == 1


def test_dump_writes_the_whole_story(decoder, tmp_path):
    files = decoder.dump(tmp_path / "dump")
    assert {file.name for file in files} == {
        "graph.txt", "tasks.txt", "schedule.txt", "worker.py", "queue.py", "actions.py",
        "waiting.py"}
    assert "attention" in (tmp_path / "dump" / "graph.txt").read_text()
