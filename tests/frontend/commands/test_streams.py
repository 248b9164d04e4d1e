"""Standard streams that are closed, full or abandoned, and input that is no text."""

import json
import os
import shlex
import subprocess

import pytest
from conftest import COMMAND, command_environment

from frontend.commands import streams

GENERATE = ("generate", "demo", "--prompt", "kernel:", "--max-new-tokens", "4")
CHAT = ("chat", "demo", "--max-new-tokens", "4")
NOBODY_READS = 141


def in_shell(*arguments, redirected, text=b"", **environment):
    """A command with the shell's redirections, `out` and `err` naming what the test gets to see."""
    line = f"{shlex.join([*COMMAND, *arguments])} {redirected}"
    return subprocess.run(["/bin/sh", "-c", line], input=text, capture_output=True, timeout=120,
                          env=command_environment(**environment))


@pytest.mark.parametrize("arguments", [GENERATE, (*GENERATE, "--json"), ("cache",),
                                       ("generate", "--help"), CHAT])
@pytest.mark.parametrize("redirected, why", [(">/dev/full", "No space left on device"),
                                             (">&-", "it is closed")])
def test_output_that_cannot_be_written_ends_in_a_sentence(arguments, redirected, why):
    done = in_shell(*arguments, redirected=redirected, text=b"kernel\n")
    assert done.returncode == 2
    assert done.stderr.decode() == f"error: cannot write to standard output: {why}\n"


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", "<&-", "<&- 2>&-"])
def test_output_needs_no_other_stream(redirected):
    done = in_shell(*GENERATE, "--json", redirected=redirected)
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["output_ids"]) == 4
    assert in_shell("cache", redirected=redirected).stdout.startswith(b"kernel cache")


@pytest.mark.parametrize("arguments, code", [(GENERATE, 2), (CHAT, 0), (("--no-such",), 2)])
def test_a_process_may_have_no_streams_at_all(arguments, code):
    """What it opens meanwhile is not taken for one of them."""
    assert in_shell(*arguments, redirected="<&- >&- 2>&-").returncode == code


@pytest.mark.parametrize("arguments", [(*GENERATE, "--json"), ("cache",), ("--help",), CHAT])
def test_output_that_nobody_reads_ends_quietly(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*COMMAND, *arguments], input=b"kernel\n", stdout=writer,
                          stderr=subprocess.PIPE, timeout=120, env=command_environment())
    os.close(writer)
    assert (done.returncode, done.stderr) == (NOBODY_READS, b"")


def test_output_that_does_not_block_loses_nothing():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    process = subprocess.Popen([*COMMAND, "inspect", "demo", "--what", "graph", "--json"],
                               stdout=writer, env=command_environment())
    os.close(writer)
    with open(reader, "rb") as file:
        assert json.loads(file.read())["text"]
    assert process.wait(timeout=120) == 0


@pytest.mark.parametrize("redirected", ["<&-", "0>/dev/null"])
def test_input_that_cannot_be_read_is_named(redirected):
    done = in_shell("generate", "demo", "--prompt", "-", redirected=redirected)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"error: cannot read standard input: it is closed\n"


def test_a_chat_without_input_ends():
    done = in_shell(*CHAT, redirected="<&-")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


NOT_UTF8 = {"a byte of latin-1": b"na\xefve", "a lone byte": b"\xff",
            "half of a character": b"\xc3"}


@pytest.mark.parametrize("locale", [{"LC_ALL": "C.UTF-8"}, {"LC_ALL": "POSIX"},
                                    {"PYTHONIOENCODING": "utf-8:strict"}])
def test_a_line_that_is_no_text_costs_no_other_line(locale):
    lines = [b"kernel", *NOT_UTF8.values(), "naïve — 你".encode(), b"ker\0nel", b"kernel"]
    done = in_shell(*CHAT, redirected="", text=b"\n".join(lines) + b"\n/stats\n", **locale)
    assert done.returncode == 0
    errors = [line for line in done.stderr.decode().splitlines() if line.startswith("error: ")]
    assert errors == ["error: this line is not UTF-8 text; convert it to UTF-8"] * len(NOT_UTF8)
    assert b"turns                            4" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("text", NOT_UTF8.values(), ids=NOT_UTF8)
def test_a_prompt_that_is_no_text_is_refused(text):
    done = in_shell("generate", "demo", "--prompt", "-", redirected="", text=text)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"error: standard input is not UTF-8 text; convert it to UTF-8\n"


def test_the_encoding_of_input_is_pythons():
    options = ("generate", "demo", "--prompt", "-", "--max-new-tokens", "1", "--json")
    ids = [json.loads(in_shell(*options, redirected="", text="naïve".encode(encoding),
                               PYTHONIOENCODING=encoding).stdout)["prompt_ids"]
           for encoding in ("utf-8", "latin-1")]
    assert ids[0] == ids[1]
    for arguments in (options, CHAT):  # no line ends where the characters are unknown
        done = in_shell(*arguments, redirected="", text=b"naive", PYTHONIOENCODING="utf-16")
        assert done.returncode == 2
        assert "is not UTF-16" in done.stderr.decode("utf-16")


@pytest.mark.parametrize("option", ["--prompt", "--stop", "--system"])
def test_options_that_are_no_text_are_refused(command, option):
    name = "chat" if option == "--system" else "generate"
    more = ("--prompt", "kernel") if option == "--stop" else ()
    done = command(name, "demo", *more, option, os.fsdecode(b"na\xefve"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {option} is not UTF-8 text; convert it to UTF-8\n"


def test_a_stream_that_fails_tells_its_own_errors(tmp_path):
    """Of other files an error stays what it is."""
    closed = streams.Output(os.open(tmp_path / "file", os.O_CREAT | os.O_RDONLY), "w")
    with pytest.raises(streams.StreamError, match="standard output: it is closed"):
        closed.write(b"text")
    assert streams.Errors(closed.fileno(), "w", closefd=False).write(b"text") == 4
