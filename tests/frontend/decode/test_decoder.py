"""The decoder's own contract: streams, early ends, one launch at a time."""

import numpy as np
import pytest

from event_tensor.ancestors import ancestors
from event_tensor.errors import UserError
from event_tensor.instantiate import instantiate
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


def test_decoding_does_not_wait_for_keys_to_be_appended(decoder):
    """Only what comes at the end of a step or overwrites them, layers later, does."""
    def who_waits(graph):
        events = {edge.event for call in graph.calls if call.function.name == "rope_append"
                  for edge in call.out_edges}
        return {call.function.name for call in graph.calls
                if any(edge.event in events for edge in call.in_edges)}

    assert decoder.graph.name == "decode_step"
    assert who_waits(decoder.graph) <= {"norm_linear", "select_token"}
    assert "attention" in who_waits(decoder.prefill.graph)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_token_comes_after_all_keys_and_values_before_it(decoder, rows):
    """A conversation goes on from what the cache holds, however the launch has ended."""
    for graph in (decoder.graph, decoder.prefill.graph):
        table = instantiate(graph, decoder.bindings(rows, rows, 9))
        function = np.array([graph.calls[call].function.name for call in table.call])
        kept, chosen = (np.flatnonzero(function == name)
                        for name in ("rope_append", "select_token"))
        assert len(kept) and len(chosen) == rows
        assert ancestors(table).before(np.tile(kept, rows), np.repeat(chosen, len(kept))).all()


@pytest.mark.parametrize("schedule", ["static", "dynamic", "dynamic_early", "unfused"])
def test_steps_of_one_row_and_of_many_compute_the_same(tiny_model, schedule):
    """A row alone in its step takes its key as it is; beside others, from the cache."""
    decoder = compile_decode_loop(tiny_model("qwen3"), workers=2, schedule=schedule)
    ids = list(range(3, 40))
    together = decoder.logits(ids)
    for length in (1, 2, 17, len(ids)):
        apart = decoder.logits(ids[:length], last=1)[0]
        assert np.abs(apart - together[length - 1]).max() <= 1e-5


def test_dump_writes_the_whole_story(decoder, tmp_path):
    files = decoder.dump(tmp_path / "dump")
    assert {file.name for file in files} == {
        "graph.txt", "prefill_graph.txt", "tasks.txt", "schedule.txt", "worker.py", "queue.py",
        "slots.py", "actions.py", "waiting.py", "sleeping.py"}
    assert "attention" in (tmp_path / "dump" / "graph.txt").read_text()
