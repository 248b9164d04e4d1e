"""Turns: the text of a fresh run, few tokens read, and a conversation that mistakes leave alone."""

import threading

import pytest
from chat_model import FORGETFUL, REFUSING, write_chat_model

from event_tensor.errors import UserError
from frontend.compile import compile_decode_loop

SEEDED = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 5}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def decoder(directory):
    return compile_decode_loop(directory, workers=2)


@pytest.fixture(scope="module")
def fresh(directory):
    """A decoder that no conversation has touched: `fresh(conversation, text, **options)`."""
    other = compile_decode_loop(directory, workers=2)

    def answer(conversation, text, **options):
        messages = [*conversation.history, {"role": "user", "content": text}]
        ids = other.tokenizer.encode_bare(conversation._template.render(messages))
        result = other.generate(ids, **options)
        result.text = other.tokenizer.decode(result.output_ids)  # an answer stands alone
        return result

    return answer


def send(conversation, text, **options):
    """The whole answer, put together from its pieces."""
    return "".join(token.text for token in conversation.send(text, **options))


def common(first, second):
    return next((k for k, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
                min(len(first), len(second)))


@pytest.mark.parametrize("options", [{}, SEEDED])
def test_each_turn_equals_a_fresh_run_and_reads_only_what_is_new(decoder, fresh, options):
    conversation = decoder.chat(system="w7 w8")
    before = None
    for text in ("w1 w2 w3", "w4", "w5 w6 w1"):
        expected = fresh(conversation, text, max_new_tokens=12, **options)
        assert send(conversation, text, max_new_tokens=12, **options) == expected.text
        last = conversation.last
        assert (last.prompt_ids, last.output_ids) == (expected.prompt_ids, expected.output_ids)
        if before is not None:  # the answer's last token has no keys and values yet
            known = [*before.prompt_ids, *before.output_ids[:-1]]
            assert common(known, last.prompt_ids) == len(known)
            assert last.prefilled_tokens == len(last.prompt_ids) - len(known) < 15
        before = last
    assert [m["role"] for m in conversation.history] == [
        "system", *("user", "assistant") * 3]
    assert decoder.compilations == 1


def test_a_changed_prefix_is_computed_from_where_it_differs(tmp_path):
    directory = write_chat_model(tmp_path, FORGETFUL)
    decoder, other = (compile_decode_loop(directory, workers=2) for _ in range(2))
    conversation = decoder.chat()
    send(conversation, "w1 w2 w3", max_new_tokens=9)
    first = conversation.last
    text = send(conversation, "w4", max_new_tokens=9)
    last = conversation.last
    same = common(first.prompt_ids, last.prompt_ids)
    assert 0 < same < len(first.prompt_ids)
    assert last.prefilled_tokens == len(last.prompt_ids) - same
    expected = other.generate(last.prompt_ids, max_new_tokens=9).output_ids
    assert other.tokenizer.decode(expected) == text


def test_another_generation_in_between_changes_nothing_but_the_cache(decoder, fresh):
    conversation = decoder.chat()
    send(conversation, "w1 w2", max_new_tokens=6)
    decoder.generate([9, 8, 7, 6], max_new_tokens=3, ignore_eos=True)
    expected = fresh(conversation, "w3", max_new_tokens=6)
    assert send(conversation, "w3", max_new_tokens=6) == expected.text
    assert conversation.last.prefilled_tokens == len(expected.prompt_ids)


def test_an_answer_that_is_left_stays_as_far_as_it_was_seen(decoder, fresh):
    conversation = decoder.chat()
    stream = conversation.send("w1 w2", max_new_tokens=300)
    seen = "".join(next(stream).text for _ in range(4))
    stream.close()
    assert conversation.history[-1] == {"role": "assistant", "content": seen}
    assert conversation.last.finish_reason == "aborted"
    expected = fresh(conversation, "w3", max_new_tokens=8)
    assert send(conversation, "w3", max_new_tokens=8) == expected.text
    assert conversation.last.prefilled_tokens < 10


def test_interrupt_ends_an_answer_from_another_thread(decoder):
    conversation = decoder.chat()
    seen = []
    for token in conversation.send("w1 w2", max_new_tokens=400, ignore_eos=True):
        seen.append(token.text)
        if len(seen) == 3:
            thread = threading.Thread(target=conversation.interrupt)
            thread.start()
            thread.join()
    assert len(seen) == 3
    assert conversation.history[-1]["content"] == "".join(seen)
    assert len(send(conversation, "w4", max_new_tokens=5).split()) == 5


def test_of_an_answer_that_nobody_saw_nothing_is_kept(decoder):
    conversation = decoder.chat()
    stream = conversation.send("w1")
    del stream
    assert conversation.history == []
    assert conversation.last is None and conversation.context_tokens == 0


def test_reset_keeps_the_system_prompt_and_its_cache(decoder):
    conversation = decoder.chat(system="w5 w6 w7")
    send(conversation, "w1", max_new_tokens=3)
    read = conversation.last.prefilled_tokens
    conversation.reset()
    assert conversation.history == [{"role": "system", "content": "w5 w6 w7"}]
    assert conversation.stats.turns == 0
    send(conversation, "w2", max_new_tokens=3)
    assert conversation.last.prefilled_tokens < read


def test_stats_are_sums_over_turns(decoder):
    conversation = decoder.chat()
    empty = conversation.stats
    assert (empty.turns, empty.context_tokens, empty.ttft_ms, empty.tpot_ms) == (0, 0, None, None)
    for text in ("w1", "w2"):
        send(conversation, text, max_new_tokens=5, ignore_eos=True)
    stats, last = conversation.stats, conversation.last
    assert stats.prefilled_tokens + stats.reused_tokens == 6 + len(last.prompt_ids)
    assert (stats.turns, stats.generated_tokens) == (2, 10)
    assert stats.context_tokens == len(last.prompt_ids) + 5
    assert stats.reused_tokens >= len(last.prompt_ids) - last.prefilled_tokens > 0
    assert stats.ttft_ms > 0 and set(stats.tpot_ms) == {"p50", "p90", "p99"}


def test_an_answer_ends_where_the_context_does_and_the_next_message_is_refused(directory):
    decoder = compile_decode_loop(directory, max_context=64)
    conversation = decoder.chat()
    send(conversation, "w1 w2", ignore_eos=True)
    assert conversation.last.finish_reason == "length"
    assert conversation.context_tokens == 64
    history = conversation.history
    with pytest.raises(UserError) as caught:
        conversation.send("w3")
    for words in ("max_context 64", "shorten it", "/reset", "--max-context"):
        assert words in str(caught.value)
    assert conversation.history == history
    conversation.reset()
    assert send(conversation, "w3", max_new_tokens=4)


@pytest.mark.parametrize("options, named", [
    ({"temperature": -1.0}, "temperature is -1.0"), ({"top_p": -0.5}, "top_p"),
    ({"top_k": -3}, "top_k"), ({"stop": [""]}, "empty"), ({"max_new_tokens": 0}, "at least 1"),
    ({"tempreature": 1.0}, "tempreature")])
def test_a_refused_option_leaves_the_conversation_alone(decoder, options, named):
    conversation = decoder.chat()
    send(conversation, "w1", max_new_tokens=3)
    history = conversation.history
    with pytest.raises(UserError, match=named):
        conversation.send("w2", **options)
    assert conversation.history == history
    assert send(conversation, "w2", max_new_tokens=3)


def test_what_is_no_text_is_refused(decoder):
    conversation = decoder.chat()
    with pytest.raises(UserError, match="not UTF-8"):
        conversation.send("w1 \udcff")
    assert conversation.history == []


def test_a_template_that_refuses_leaves_the_conversation_alone(tmp_path):
    decoder = compile_decode_loop(write_chat_model(tmp_path, REFUSING))
    with pytest.raises(UserError, match="no system role"):
        decoder.chat(system="w1").send("w2")
    assert send(decoder.chat(), "w2", max_new_tokens=3)


def test_models_that_cannot_talk_say_why(tmp_path, tiny_model):
    with pytest.raises(UserError, match="no chat template"):
        compile_decode_loop(write_chat_model(tmp_path, None)).chat()
    with pytest.raises(UserError, match="no tokenizer"):
        compile_decode_loop(tiny_model("qwen3")).chat()


def test_the_demo_continues_the_last_message():
    conversation = compile_decode_loop("demo").chat()
    first = send(conversation, "kernel:", max_new_tokens=30)
    send(conversation, "hacker", max_new_tokens=30)
    assert conversation.history[-1]["content"].strip().startswith("1. A person who enjoys")
    assert send(conversation, "kernel ", max_new_tokens=30) == first
    with pytest.raises(UserError, match="no system prompt"):
        compile_decode_loop("demo").chat(system="Be kind.").send("hacker")
