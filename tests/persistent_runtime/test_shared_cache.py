"""A cache that others have filled or that cannot be written, and machines without a home."""

import json
import os
import pwd
import resource
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import COMMAND, command_environment
from users import as_user, needs_users

from event_tensor.errors import UserError
from frontend.report.cache import STORES
from persistent_runtime.cache import files as cache_files
from persistent_runtime.cache import stores
from persistent_runtime.cache.kept_file import KeptFile
from persistent_runtime.cpu.compile import parallel
from persistent_runtime.cpu.compile.disk_cache import FUNCTIONS

NOBODY, NOT_IN_PASSWD = 65534, 12345
COMPILE = """
from persistent_runtime.functions import dense as df
from persistent_runtime.cpu.compile import parallel
from persistent_runtime.cpu.compile import registry
from persistent_runtime.function_table import variant
parallel.compile_entries([registry.entry_of(variant(df.embed_tokens, "bfloat16"))], 1)
(made,) = registry.COMPILATIONS
import json
print(json.dumps([made.cache_hit, made.note, made.reason]))
"""
HIT = [True, "", ""]


def compile_one(cache, uid=None):
    """(whether it was in the cache, note, reason) of a process of its own."""
    before = as_user(uid) if uid else []
    done = subprocess.run([*before, sys.executable, "-c", COMPILE], capture_output=True, text=True,
                          timeout=120, env=command_environment(EVENT_TENSOR_CACHE=str(cache)))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A cache with one function, for all to read."""
    cache = tmp_path_factory.mktemp("cache")
    assert compile_one(cache) == [False, "", "first start with this cache"]
    return cache


@pytest.fixture
def copied(filled, tmp_path):
    """Its folder, free to be changed."""
    shutil.copytree(filled, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").glob("cpu-*")
    return folder


def run_as(uid, *arguments, without=(), **environment):
    kept = {k: v for k, v in command_environment(**environment).items() if k not in without}
    return subprocess.run([*as_user(uid), *COMMAND, *map(str, arguments)], capture_output=True,
                          text=True, timeout=120, env=kept)


@needs_users
def test_what_root_has_compiled_serves_a_user_who_cannot_write(filled, copied):
    assert compile_one(filled, NOBODY) == HIT
    (copied / stores.KEY_FILE).unlink()
    assert compile_one(copied.parent, NOBODY) == HIT
    shown = run_as(NOBODY, "cache", "--json", EVENT_TENSOR_CACHE=str(filled))
    record = json.loads(shown.stdout)
    assert record["entries"][0]["functions"] == 1 and record["entries"][0]["current"]
    assert record["problem"] == "Permission denied"


@needs_users
def test_what_a_user_without_a_place_compiles_is_told(tmp_path):
    hit, note, _ = compile_one(tmp_path, NOBODY)
    assert not hit
    assert "Permission denied; set EVENT_TENSOR_CACHE" in note


@needs_users
def test_nobody_believes_another_users_files(copied):
    (entry,) = copied.glob("*.compiled")
    os.chown(entry, 777, -1)
    hit, note, reason = compile_one(copied.parent, NOBODY)
    assert not hit and "user 777 owns it" in reason
    assert not compile_one(copied.parent)[0]  # root has the most to lose
    assert compile_one(copied.parent) == HIT  # for it has replaced the file
    os.chown(copied, 777, -1)
    hit, note, reason = compile_one(copied.parent)
    assert not hit and "user 777 owns it" in note
    shown = run_as(NOBODY, "cache", EVENT_TENSOR_CACHE=str(copied.parent))
    assert "not used: user 777 owns it" in shown.stdout


def test_a_folder_without_its_key_is_used_and_gets_one(copied):
    (copied / stores.KEY_FILE).unlink()
    assert compile_one(copied.parent) == HIT
    assert stores.read_key(copied) == FUNCTIONS.key()


@pytest.fixture
def kept(tmp_path):
    folder = tmp_path / "cpu-0"
    cache_files.make_folder(folder)
    file = KeptFile(folder / "entry", {})
    file.save(b"content")
    assert file.load() == b"content"
    return file


def test_files_that_everybody_may_write_are_not_believed(kept):
    for path in (kept.path, kept.path.parent):
        mode = path.stat().st_mode
        path.chmod(mode | stat.S_IWOTH)
        assert kept.load() is None and "everybody may write it" in kept.note
        assert not cache_files.is_believed(kept.path)
        path.chmod(mode)
        assert kept.load() == b"content"


def test_a_link_is_no_folder_of_the_cache(kept):
    link = kept.path.parent.with_name("cpu-1")
    link.symlink_to(kept.path.parent)
    assert KeptFile(link / "entry", {}).load() is None


def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(kept):
    kept.path.unlink()
    os.mkfifo(kept.path)
    assert kept.load() is None


@pytest.mark.parametrize("umask, file, folder", [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700),
                                                 (0o000, 0o664, 0o775)])
def test_the_umask_says_who_may_read(tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        place, _ = replace(FUNCTIONS, base=lambda: tmp_path).open()
    finally:
        os.umask(before)
    (key,) = place.iterdir()
    assert stat.S_IMODE(key.stat().st_mode) == file
    assert stat.S_IMODE(key.parent.stat().st_mode) == folder


def test_a_disk_that_fills_amid_a_file_leaves_the_old_one(kept):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        kept.save(bytes(10000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in kept.note
    assert list(kept.path.parent.iterdir()) == [kept.path]
    assert kept.load() == b"content"


def test_no_helpers_where_they_could_leave_nothing(monkeypatch, tmp_path):
    from persistent_runtime.cpu.compile import registry
    from persistent_runtime.function_table import variant
    from persistent_runtime.functions import dense as df

    monkeypatch.setenv("EVENT_TENSOR_CACHE", str(tmp_path))
    monkeypatch.setattr(registry, "_compiled", {})
    entry = registry.entry_of(variant(df.embed_tokens, "bfloat16"))
    assert parallel._missing([entry]) == [entry]
    monkeypatch.setattr(parallel, "write_problem", lambda folder: "Read-only file system")
    assert parallel._missing([entry]) == []


def test_doctor_passes_a_cache_that_is_complete_and_read_only(monkeypatch, tmp_path):
    from frontend.report import doctor

    monkeypatch.setenv("EVENT_TENSOR_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "write_problem", lambda folder: "Read-only file system")
    check = doctor.check_cache()
    assert not check["passed"] and "compiles anew" in check["detail"]
    folder, _ = FUNCTIONS.open()
    (folder / "attention.compiled").touch()
    check = doctor.check_cache()
    assert check["passed"] and "Read-only file system" in check["detail"]


def test_a_cache_that_cannot_be_read_is_named(command, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EVENT_TENSOR_CACHE", str(tmp_path / "file"))
    done = command("cache")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "cannot be read (Not a directory)" in done.stderr


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """An empty folder for temporary files, and no variable that says where the cache is."""
    monkeypatch.delenv("EVENT_TENSOR_CACHE", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def no_entry(uid):
    raise KeyError(uid)


@pytest.mark.parametrize("home", [None, "/nonexistent", "file", "holds-a-file"])
def test_where_no_home_holds_a_cache_a_private_folder_does(temporary, monkeypatch, home):
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.delenv("HOME")
    (temporary / "file").touch()
    (temporary / "holds-a-file").mkdir()
    (temporary / "holds-a-file" / ".cache").touch()
    if home is not None:
        monkeypatch.setenv("HOME", str(temporary / home))
    private = temporary / f"event-tensor-{os.geteuid()}"
    for _ in range(2):
        assert cache_files.base_directory() == private / ".cache" / "event-tensor"
        assert stat.S_IMODE(private.stat().st_mode) == 0o700


def test_a_home_is_where_the_cache_is(temporary, monkeypatch):
    home = temporary / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    assert cache_files.base_directory() == home / ".cache" / "event-tensor"
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("harm", [lambda path: path.chmod(0o777), lambda path: (
    path.rmdir(), path.symlink_to(path.parent)), lambda path: (path.rmdir(), path.touch())])
def test_a_private_folder_that_is_not_private_is_refused(temporary, harm):
    harm(cache_files.substitute_home())
    with pytest.raises(UserError, match="set HOME"):
        cache_files.substitute_home()


def test_an_unknown_home_in_the_variable_is_a_mistake(command, monkeypatch):
    monkeypatch.setenv("EVENT_TENSOR_CACHE", "~nobody-of-that-name/cache")
    done = command("cache")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "absolute path" in done.stderr


@needs_users
@pytest.mark.parametrize("arguments", [("cache",), ("--help",), ("inspect", "demo"), (
    "generate", "demo", "--prompt", "kernel:", "--max-new-tokens", "4")])
def test_commands_of_a_user_without_home_and_name(command, tmp_path, arguments):
    """With what an earlier start has left in the private folder, so that none compiles."""
    command("generate", "demo", "--prompt", "kernel:", "--max-new-tokens", 4)
    temporary = tmp_path / "temporary"
    place = temporary / f"event-tensor-{NOT_IN_PASSWD}" / ".cache" / "event-tensor"
    for folder in {store.directory() for store in STORES if store.directory().is_dir()}:
        shutil.copytree(folder, place / folder.name)
    for path in (temporary, *temporary.rglob("*")):
        os.chown(path, NOT_IN_PASSWD, NOT_IN_PASSWD)
    (temporary / f"event-tensor-{NOT_IN_PASSWD}").chmod(0o700)
    done = run_as(NOT_IN_PASSWD, *arguments, without=("HOME", "EVENT_TENSOR_CACHE"),
                  TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout


def test_a_home_for_libraries(temporary, monkeypatch):
    from frontend.model_files.directories import provide_home

    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    provide_home()
    assert Path.home() == temporary / f"event-tensor-{os.geteuid()}"
    assert "TRITON_CACHE_DIR" not in os.environ  # Triton finds a place there by itself
