"""Several processes compile what no cache has; one that fails costs time and nothing else."""

import os
import resource
import select
import signal
import threading
import time

import pytest

from persistent_runtime.cpu.compile import disk_cache, parallel, registry
from persistent_runtime.cpu.compile.parallel import compile_entries
from persistent_runtime.function_table import variant
from persistent_runtime.functions import dense as df

FUNCTIONS = (df.embed_tokens, df.attention_combine, df.rope_append)


@pytest.fixture
def entries(tmp_path, monkeypatch):
    """Of functions that neither this process nor the cache has."""
    monkeypatch.setenv("EVENT_TENSOR_CACHE", str(tmp_path))
    monkeypatch.setattr(registry, "_compiled", {})
    monkeypatch.setattr(registry, "COMPILATIONS", [])
    monkeypatch.setattr(f"{__name__}.CHILDREN_BEFORE", children())
    return [registry.entry_of(variant(function, "bfloat16")) for function in FUNCTIONS]


def found():
    return {c.function: (c.cache_hit, c.elsewhere_s > 0) for c in registry.COMPILATIONS}


CHILDREN_BEFORE: set[str] = set()  # of other tests, which go on


def children():
    """Process numbers, dead ones that nobody has waited for included."""
    return {child for task in os.listdir("/proc/self/task")
            for child in open(f"/proc/self/task/{task}/children").read().split()}


def are_children_left():
    return bool(children() - CHILDREN_BEFORE)


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_all_are_compiled_in_order_and_kept(entries, processes):
    calls = []
    bodies = compile_entries(entries, processes, lambda *progress: calls.append(progress))
    assert [body.name for body in bodies] == [function.name for function in FUNCTIONS]
    assert all(body.address for body in bodies)
    assert calls == [(done, 3) for done in (1, 2, 3)]
    assert found() == {function.name: (False, True) for function in FUNCTIONS}
    assert all(c.reason == "first start with this cache" and not c.note
               for c in registry.COMPILATIONS)
    folder, _ = registry.open_cache()
    assert all(entry.file_in(folder).exists() for entry in entries)
    assert not are_children_left()


def test_what_a_cache_has_needs_no_helpers(entries, monkeypatch):
    compile_entries(entries, 1)
    registry._compiled.clear()
    registry.COMPILATIONS.clear()
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("there is nothing to compile"))
    compile_entries(entries, 8)
    assert found() == {function.name: (True, False) for function in FUNCTIONS}


def never_comes():
    time.sleep(100)


def fails():
    raise MemoryError


@pytest.mark.parametrize("happens", [fails, never_comes])
def test_what_a_helper_fails_at_is_compiled_here(entries, monkeypatch, happens):
    own, this_process = registry.compile_entry, os.getpid()

    def compile_entry(entry, elsewhere=None):
        if os.getpid() != this_process:
            happens()
        return own(entry, elsewhere)

    monkeypatch.setattr(parallel, "LONGEST_S", 0.2)
    monkeypatch.setattr(parallel, "compile_entry", compile_entry)
    assert all(body.address for body in compile_entries(entries, 3))
    assert found() == {function.name: (False, False) for function in FUNCTIONS}
    assert not are_children_left()


def test_an_interrupt_leaves_no_helper(entries, monkeypatch):
    this_process = os.getpid()

    def interrupt(entry):
        if os.getpid() == this_process:
            pytest.fail("only helpers compile")
        os.kill(this_process, signal.SIGINT)
        never_comes()

    monkeypatch.setattr(parallel, "compile_entry", interrupt)
    with pytest.raises(KeyboardInterrupt):
        compile_entries(entries, 1)
    assert not are_children_left()


def test_a_process_that_ends_at_once_leaves_no_helper(entries):
    """As after Ctrl-C, where native code keeps the interpreter from an orderly end."""
    reader, writer = os.pipe()
    compiling = os.fork()
    if compiling == 0:
        this_process = os.getpid()

        def end(entry):
            os.kill(this_process, signal.SIGKILL)
            never_comes()

        parallel.compile_entry = end
        compile_entries(entries, 2)
    os.waitpid(compiling, 0)
    os.close(writer)
    assert select.select([reader], [], [], 60)[0], "a helper holds the other end"
    os.close(reader)


@pytest.mark.parametrize("room", [0, 1])
def test_a_machine_without_room_for_more_processes(entries, monkeypatch, room):
    own, forks = os.fork, []

    def fork():
        if len(forks) == room:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        forks.append(1)
        return own()

    monkeypatch.setattr(os, "fork", fork)
    before = len(os.listdir("/proc/self/fd"))
    assert all(body.address for body in compile_entries(entries, 3))
    assert found() == {function.name: (False, room > 0) for function in FUNCTIONS}
    assert not are_children_left() and len(os.listdir("/proc/self/fd")) == before


def test_many_open_files_are_no_obstacle(entries):
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(limit, 2000), most), most))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert all(body.address for body in compile_entries(entries, 2))
    finally:
        for file in held:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))


def test_helpers_that_cannot_save_leave_the_work(entries, monkeypatch):
    monkeypatch.setattr(disk_cache.DiskEntry, "save", lambda self, payload: None)
    assert all(body.address for body in compile_entries(entries, 2))
    assert found() == {function.name: (False, False) for function in FUNCTIONS}


def test_what_no_cache_could_keep_is_compiled_here(entries, monkeypatch):
    monkeypatch.setattr(registry.Entry, "can_be_kept", False)
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a helper could leave nothing"))
    assert all(body.address for body in compile_entries(entries, 3))
    assert all("no source file" in c.note for c in registry.COMPILATIONS)


def test_another_thread_may_load_functions_meanwhile(entries):
    """A helper would wait for ever for a lock that it was born without the holder of."""
    held = threading.Event()

    def hold():
        with registry.compiling:
            held.set()
            time.sleep(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    compile_entries(entries, 2)
    thread.join()
    assert found() == {function.name: (False, True) for function in FUNCTIONS}


def test_an_interrupt_amid_forking_leaves_no_helper(entries, monkeypatch):
    own = os.fork

    def fork():
        os.kill(os.getpid(), signal.SIGINT)
        return own()

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(KeyboardInterrupt):
        compile_entries(entries, 3)
    assert not are_children_left()


def test_without_a_cache_this_process_compiles_all(entries, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EVENT_TENSOR_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("a helper could leave nothing here"))
    assert all(body.address for body in compile_entries(entries, 3))
    assert all("EVENT_TENSOR_CACHE" in c.note for c in registry.COMPILATIONS)
