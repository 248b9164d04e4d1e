"""Memory and threads that the system refuses end in a sentence, and nothing is left running."""

import errno
import threading

import numpy as np
import pytest
from numba.core.ccallback import CFunc

from event_tensor import compile_decode_loop, refusals
from event_tensor.errors import UserError
from event_tensor.refusals import gigabytes, refusal, require_room, reserving
from frontend import compile as frontend_compile
from frontend.report import console
from persistent_runtime.cpu.compile import registry
from persistent_runtime.function_table import variant
from persistent_runtime.functions import dense as device_functions
from persistent_runtime.launch import launch
from persistent_runtime.launch.memory import allocate

PROMPT = [1, 2, 3]

# limits the address space to what the process has after its imports, and 40 MB more
LIMITED = """
import resource, frontend.compile, persistent_runtime.cpu.backend
from frontend.cli import main
used, = (int(line.split()[1]) * 1024 for line in open("/proc/self/status")
         if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + 40_000_000,) * 2)
main()
"""


@pytest.fixture(scope="module")
def directory(tiny_model):
    return tiny_model("llama")


@pytest.fixture(scope="module")
def decoder(directory):
    return compile_decode_loop(directory, backend="cpu", workers=3, max_context=64)


def test_a_limit_on_memory(run_command):
    done = run_command("generate", "demo", "--prompt", "kernel:", code=LIMITED)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: there is no memory for the KV cache: 0.08 GB for 16 "
                                  "requests of 2048 positions; give a smaller --max-context")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("context", [10**9, 2**31 - 1])
def test_a_context_that_no_machine_has(command, tiny_model, monkeypatch, context):
    """It is refused before anything is compiled."""
    monkeypatch.setattr(frontend_compile, "Megakernel", None)
    directory = tiny_model("llama", max_position_embeddings=2**31 - 1)
    done = command("generate", directory, "--prompt-ids", "1", "--max-context", context)
    assert done.returncode == 2
    assert "the KV cache: " in done.stderr and f"16 requests of {context} pos" in done.stderr


def test_shapes_beyond_every_address_space():
    with pytest.raises(MemoryError):
        allocate((2**40, 2**40), "float32")
    assert allocate((0, 2**40), "float32").size == 0


def fail_from(monkeypatch, kept, error):
    """Threads of workers from number `kept` on cannot be started."""
    start = threading.Thread.start

    def refuse(thread):
        if thread.name.startswith("worker-") and int(thread.name.partition("-")[2]) >= kept:
            raise error
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


@pytest.mark.parametrize("kept", [0, 1, 2])
@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"),
                                   BlockingIOError(errno.EAGAIN, "try again")])
def test_threads_that_have_started_leave_where_one_is_refused(decoder, monkeypatch, kept, error):
    expected = decoder.generate(PROMPT, max_new_tokens=5, ignore_eos=True).output_ids
    with monkeypatch.context() as patch:
        fail_from(patch, kept, error)
        with pytest.raises(UserError, match=f"started {kept} of 3 worker threads.*--workers"):
            decoder.generate(PROMPT, max_new_tokens=5, ignore_eos=True)
    assert not [t for t in threading.enumerate() if t.name.startswith("worker-")]
    assert decoder.generate(PROMPT, max_new_tokens=5, ignore_eos=True).output_ids == expected


def test_traces_that_no_memory_holds(decoder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(launch, "trace_words", lambda *_: 2**55)
        with pytest.raises(UserError, match="launch of 3 workers.*traces of 4 steps.*trace fewer"):
            decoder.generate(PROMPT, max_new_tokens=5, trace_steps=4)
    assert len(decoder.generate(PROMPT, max_new_tokens=5, ignore_eos=True).output_ids) == 5


def test_weights_that_find_no_memory(directory, monkeypatch):
    def refuse(*_):
        return np.zeros(2**55)

    monkeypatch.setattr(frontend_compile, "read_weight", refuse)
    with pytest.raises(UserError, match=r"the weights: 0\.\d+ GB in float32; leave out --dtype"):
        compile_decode_loop(directory, backend="cpu", max_context=64, workers=3)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "no memory"),
                                   RuntimeError("LLVM ERROR: out of memory")])
def test_a_compiler_that_finds_no_memory(monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(CFunc, "compile", refuse)
    entry = registry.entry_of(variant(device_functions.attention, "float32"))
    with pytest.raises(UserError, match="no memory for compiling attention"):
        registry._compile(entry, None)


def test_room_is_asked_for_before_a_library_that_would_end_the_process():
    require_room(1 << 20, 1 << 20)
    with pytest.raises(OSError) as error:
        require_room(1 << 60, 1 << 20)
    assert refusal(error.value)


def chained(inner, outer):
    try:
        raise outer from inner
    except type(outer) as error:
        return error


@pytest.mark.parametrize(("error", "answer"), [
    (MemoryError(), "MemoryError"),
    (MemoryError("Unable to allocate 8.00 EiB\nfor an array"), "Unable to allocate 8.00 EiB"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
     "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    (RuntimeError("CUDA out of memory. Tried"), "CUDA out of memory. Tried"),
    (ImportError("libx.so: failed to map segment from shared object"),
     "libx.so: failed to map segment from shared object"),
    (chained(OSError("l.so: failed to map segment"), OSError("Could not find l.so")),
     "l.so: failed to map segment"),
    (RuntimeError("can't start new thread"), "can't start new thread"),
    (OSError(errno.ENOENT, "No such file"), None), (ValueError("out of memory"), None),
    (RuntimeError("shapes differ"), None), (UserError("out of memory"), None)])
def test_how_libraries_say_it(error, answer):
    assert refusal(error) == answer
    if answer is None:
        with pytest.raises(type(error)), reserving("a thing"):
            raise error
    else:
        with pytest.raises(UserError, match="no memory for a thing; raise the limit"), \
                reserving("a thing"):
            raise error


def test_the_command_line_has_a_sentence_for_what_nobody_named(command, monkeypatch):
    def refuse(*_, **__):
        raise MemoryError("Unable to allocate 3.00 GiB")

    monkeypatch.setattr(frontend_compile, "compile_decode_loop", refuse)
    done = command("generate", "demo", "--prompt", "x")
    assert done.returncode == 2
    assert done.stderr == ("error: there is no memory left (Unable to allocate 3.00 GiB); "
                           f"{refusals.LIMITS}\n")


def test_without_a_thread_for_interrupts_commands_run(monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    try:
        console.exit_soon_after_interrupt()
    finally:
        console.stay_after_interrupt()


@pytest.mark.parametrize(("size", "text"), [(10**7, "0.01 GB"), (15 * 10**8, "1.50 GB"),
                                            (88 * 10**12, "88,000 GB")])
def test_sizes_in_words(size, text):
    assert gigabytes(size) == text
