"""`event-tensor chat` as a person meets it: a real terminal, Ctrl-C, commands, and a pipe."""

import shlex
import subprocess

import pytest
from chat_model import REFUSING, write_chat_model
from conftest import COMMAND, HANG_S, command_environment, wait_until

from persistent_runtime.cpu.compile.disk_cache import FUNCTIONS

pexpect = pytest.importorskip("pexpect")

LONG = ("--max-context", "65536", "--max-new-tokens", "60000", "--workers", "1")
STATUS = r"\[TTFT [\d.]+ ms, TPOT p50 [\d.]+ ms, [\d.]+ tok/s, context (\d+)/65536, " \
         r"(\d+) tokens read, (\d+) cached(, \w[^]]*)?\]"


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("endless"), max_position_embeddings=65536)


@pytest.fixture
def shell():
    """A terminal with a shell in it, which outlives the command."""
    child = pexpect.spawn("/bin/sh", ["-i"], env=command_environment(PS1="shell$ ", TERM="xterm"),
                          encoding="utf-8", codec_errors="replace", timeout=HANG_S,
                          dimensions=(40, 200))
    child.expect_exact("shell$ ")
    yield child
    child.close(force=True)


def run(shell, command):
    shell.sendline(command)
    shell.readline()  # its echo
    shell.expect_exact("shell$ ")
    return shell.before.strip()


def start_chat(shell, *arguments):
    shell.sendline(shlex.join([*COMMAND, "chat", *map(str, arguments)]))
    shell.expect_exact("Ctrl-D the chat.")
    shell.expect("> ")


def test_a_session_in_a_terminal(shell, endless):
    modes = run(shell, "stty -g")
    transcript = []
    start_chat(shell, endless, *LONG)
    shell.sendline("w1 w2 w3")
    shell.expect(r"(w\d+ ){20}")
    transcript.append(shell.before)
    shell.sendintr()  # in the middle of the answer
    shell.expect(STATUS)
    assert "interrupted" in shell.match.group(4)
    context = int(shell.match.group(1))
    transcript.append(shell.before)
    shell.expect("> ")

    shell.sendintr()  # at the prompt
    shell.expect_exact("Ctrl-D or /quit ends the chat.")
    shell.expect("> ")

    shell.sendline("w4")
    shell.expect(r"(w\d+ ){20}")
    shell.sendintr()
    shell.expect(STATUS)
    read, cached = int(shell.match.group(2)), int(shell.match.group(3))
    assert read < 12 and cached >= context - 1  # the conversation survived, and so did its cache
    shell.expect("> ")

    shell.sendline("/stats")
    shell.expect(r"turns +2\r\n")
    shell.expect("> ")
    shell.sendline("/reset")
    shell.expect_exact("starts over")
    shell.expect("> ")
    shell.sendline("/stats")
    shell.expect(r"turns +0\r\n")
    shell.expect("> ")
    shell.sendline("/dance")
    shell.expect_exact("/dance is no command; there are /stats, /reset, /quit")
    shell.expect("> ")
    shell.sendline("/quit")
    shell.expect_exact("shell$ ")
    transcript.append(shell.before)
    assert run(shell, "echo code $?") == "code 0"
    assert run(shell, "stty -g") == modes
    assert "Traceback" not in "".join(transcript)


def test_ctrl_d_ends_the_chat_and_ctrl_c_the_start(shell, endless, tmp_path):
    modes = run(shell, "stty -g")
    start_chat(shell, endless, *LONG)
    shell.sendeof()
    shell.expect_exact("shell$ ")
    assert run(shell, "echo code $?") == "code 0"
    shell.sendline(shlex.join(["env", f"EVENT_TENSOR_CACHE={tmp_path}", *COMMAND, "chat",
                               str(endless)]))
    wait_until(lambda: any(tmp_path.rglob(f"*{FUNCTIONS.suffix}")))  # amid a cold start
    shell.sendintr()
    shell.expect_exact("shell$ ")
    assert "Traceback" not in shell.before
    assert run(shell, "echo code $?") == "code 130"
    assert run(shell, "stty -g") == modes


def test_prompts_stay_out_of_answers_that_go_elsewhere(shell, tmp_path):
    """The line is edited as usual: a letter too many goes again, from the middle of the word."""
    answers, back, erase = tmp_path / "answers", "\x02", "\x7f"
    shell.sendline(shlex.join([*COMMAND, "chat", "demo", "--max-new-tokens", "6"])
                   + f" > {shlex.quote(str(answers))}")
    shell.expect_exact("Ctrl-D the chat.")
    for line in ("kernel", f"kernexl{back}{erase}"):
        shell.expect("> ")
        shell.sendline(line)
        shell.expect(r"\[TTFT [^]]*\]")
        shell.expect("> ")
        shell.sendline("/reset")
        shell.expect_exact("starts over")
    shell.expect("> ")
    shell.sendeof()
    shell.expect_exact("shell$ ")
    first, second = answers.read_text().splitlines()
    assert first == second != "" and ">" not in first
    assert chat_through_pipe("kernel\n", "demo", "--max-new-tokens", 6).stdout == first + "\n"


def chat_through_pipe(text, *arguments):
    return subprocess.run([*COMMAND, "chat", *map(str, arguments)], input=text, text=True,
                          capture_output=True, timeout=HANG_S, env=command_environment())


def test_answers_go_to_stdout_and_all_else_to_stderr():
    done = chat_through_pipe("kernel\n\n/stats\nkernel:\n", "demo", "--max-new-tokens", 5)
    assert done.returncode == 0
    first, second = done.stdout.splitlines()
    assert first == second != ""
    assert done.stderr.count("[TTFT") == 2
    assert "turns                            1" in done.stderr


def test_mistakes_end_a_message_and_not_the_conversation(tmp_path):
    directory = write_chat_model(tmp_path, REFUSING)
    done = chat_through_pipe("w1\n" + "w2 " * 80 + "\nw3\n/stats\n", directory, "--max-context", 64,
                             "--max-new-tokens", 4)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "max_context 64" in error and "/reset" in error
    assert "turns                            2" in done.stderr
    refused = chat_through_pipe("w1\n", directory, "--system", "w5")
    assert (refused.stdout, refused.stderr.count("\n")) == ("", 1)
    assert "no system role" in refused.stderr


@pytest.mark.parametrize("arguments, words", [
    (("--temperature", "-1"), ["temperature is -1"]), (("--top-k", "-2"), ["top_k is -2"]),
    (("--top-p", "-1"), ["top_p is -1"]), (("--stop", ""), ["stop strings", "empty"]),
    (("--schedule", "magic"), ["magic"])])
def test_bad_options_are_refused_before_the_chat(command, arguments, words):
    done = command("chat", "demo", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert all(word in done.stderr for word in words)


def test_a_model_without_a_template_is_refused_before_it_is_compiled(command, tmp_path):
    done = command("chat", write_chat_model(tmp_path, None))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    for word in ("no chat template", "chat_template.jinja", "event-tensor generate"):
        assert word in done.stderr


def test_help_names_its_options_and_commands(command):
    done = command("chat", "--help")
    assert done.returncode == 0
    for word in ("--system", "--temperature", "--stop", "/reset", "Ctrl-D"):
        assert word in done.stdout
