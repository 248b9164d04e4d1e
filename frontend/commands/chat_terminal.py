"""`event-tensor chat`: a conversation on the terminal, answers as the kernel makes them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from event_tensor.errors import EventTensorError
from frontend.commands.streams import read_line
from frontend.decode.conversation import Conversation
from frontend.report.console import speed_words, stay_after_interrupt

COMMANDS = ("/stats", "/reset", "/quit")
HOW_TO_QUIT = "Ctrl-D or /quit ends the chat."


def chat_on_terminal(conversation: Conversation, options: dict[str, Any]) -> None:
    """Reads messages from stdin until its end or /quit; `options` as in Conversation.send.

    Answers go to stdout, all else to stderr. An error ends a message, not the conversation; a
    stream that fails ends it with StreamError.
    """
    stay_after_interrupt()
    is_watched = sys.stdin is not None and sys.stdin.isatty()
    if is_watched:
        with suppress(ImportError):
            import readline  # noqa: F401  # line editing and history for input()
        say(f"{', '.join(COMMANDS)}; Ctrl-C ends an answer, Ctrl-D the chat.")
    while True:
        try:
            line = read_line("> ")
            if line.rstrip() == "/quit":
                return
            respond(conversation, line, options)
        except EOFError:
            if is_watched:
                say("")
            return
        except EventTensorError as error:
            say(f"error: {error}")
        except KeyboardInterrupt:  # at the prompt: during an answer it is no exception
            say(f"\n{HOW_TO_QUIT}")


def respond(conversation: Conversation, line: str, options: dict[str, Any]) -> None:
    """Runs a command, or sends a message and shows its answer."""
    command = line.rstrip()
    if command == "/reset":
        conversation.reset()
        say("The conversation starts over.")
    elif command == "/stats":
        say(stats_text(conversation))
    elif command.startswith("/"):
        say(f"{command.split()[0]} is no command; there are {', '.join(COMMANDS)}. A message may "
            f"begin with / after a space.")
    elif command:
        answer(conversation, line, options)


def answer(conversation: Conversation, text: str, options: dict[str, Any]) -> None:
    """Streams the answer; Ctrl-C ends it, and the conversation keeps what was seen."""
    turns = conversation.stats.turns
    stream = conversation.send(text, **options)
    with interrupting(conversation), closing(stream):
        try:
            for token in stream:
                sys.stdout.write(token.text)
                sys.stdout.flush()
        finally:
            print(flush=True)
    if conversation.stats.turns > turns:
        say(status_line(conversation))
    else:
        say("Interrupted before the answer began; the message was not kept.")


@contextmanager
def interrupting(conversation: Conversation) -> Iterator[None]:
    """Ctrl-C asks the kernel to end: no exception strikes amid the bookkeeping of a launch."""
    before = signal.signal(signal.SIGINT, lambda *_: conversation.interrupt())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def status_line(conversation: Conversation) -> str:
    """TTFT, TPOT, tok/s, context used, of the latest answer."""
    last, stats = conversation.last, conversation.stats
    assert last is not None
    reused = len(last.prompt_ids) - last.prefilled_tokens
    ends = {"aborted": ["interrupted"], "length": ["cut at its limit"]}
    return "[" + ", ".join([
        *speed_words(last.ttft_ms, last.tpot_ms, last.tokens_per_second),
        f"context {stats.context_tokens}/{stats.max_context}",
        f"{last.prefilled_tokens} tokens read, {reused} cached",
        *ends.get(last.finish_reason or "", [])]) + "]"


def stats_text(conversation: Conversation) -> str:
    """One figure to a line."""
    stats = conversation.stats
    rows = {"turns": f"{stats.turns}", "context": f"{stats.context_tokens}/{stats.max_context}",
            "prompt tokens read": f"{stats.prefilled_tokens}",
            "prompt tokens cached": f"{stats.reused_tokens}",
            "tokens generated": f"{stats.generated_tokens}"}
    if stats.ttft_ms is not None:
        rows["TTFT, median"] = f"{stats.ttft_ms:.1f} ms"
    rows |= {f"TPOT {name}": f"{value:.2f} ms" for name, value in (stats.tpot_ms or {}).items()}
    return "\n".join(f"{name:22}{value:>12}" for name, value in rows.items())


def say(text: str) -> None:
    """For the person, not for whoever reads the answers from a pipe."""
    print(text, file=sys.stderr, flush=True)
