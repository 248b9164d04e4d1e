"""The package as users meet it: its names, its version, and the wheel, installed beside the
libraries it needs and run from a folder of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from conftest import HANG_S, ROOT

import event_tensor

PACKAGES = ("event_tensor", "scheduling", "persistent_runtime", "frontend")
DATA = ("frontend/demo", "frontend/demo_moe")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
IMPORTED = """
import sys
before = set(sys.modules)
import event_tensor
new = {name.partition('.')[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names)))
print(*sorted(name for name in sys.modules if name.startswith('event_tensor')))
"""


def python(*arguments, **options):
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True,
                          timeout=HANG_S, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shipped_files(root):
    """What of the four packages belongs into the wheel: sources, marks of typing, the demo models,
    as paths within `root`."""
    found = {file for package in PACKAGES for pattern in ("*.py", "py.typed")
             for file in (root / package).rglob(pattern)}
    found |= {file for folder in DATA for file in (root / folder).iterdir() if file.is_file()}
    return {file.relative_to(root).as_posix() for file in found}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: a build leaves files behind, and a later one would ship them."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES + ("benchmarks", "tests"):
        shutil.copytree(ROOT / package, source / package,
                        ignore=shutil.ignore_patterns("__pycache__"))
    python("-c", BUILD, str(folder), cwd=source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The command of a fresh environment that has the wheel; the libraries are this one's."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    libraries = {path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")}
    (packages / "libraries.pth").write_text("\n".join(sorted(libraries)) + "\n")
    python("-m", "pip", "--python", str(environment / "bin" / "python"), "install", "--quiet",
           "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel))
    return environment / "bin" / "event-tensor"


def test_importing_it_imports_nothing_else():
    assert python("-c", IMPORTED, cwd=ROOT).splitlines() == ["event_tensor", "event_tensor"]


def test_its_names_are_those_of_the_top_floor():
    from frontend.compile import compile_decode_loop
    from frontend.decode.decoder import Decoder
    from frontend.decode.generation import Generation, Token

    assert event_tensor.compile_decode_loop is compile_decode_loop
    assert (event_tensor.Decoder, event_tensor.Generation, event_tensor.Token) == (
        Decoder, Generation, Token)
    assert set(event_tensor.__all__) <= set(dir(event_tensor))
    with pytest.raises(AttributeError, match="no attribute 'compile_encode_loop'"):
        event_tensor.compile_encode_loop  # noqa: B018


def test_the_version_needs_no_installation(command, tmp_path):
    """From a checkout that was only put on the path."""
    path = tmp_path / "checkout"
    path.symlink_to(ROOT)
    found = python("-S", "-c", "import event_tensor; print(event_tensor.__version__)",
                   env={"PYTHONPATH": str(path)}, cwd=tmp_path)
    assert found.split() == [event_tensor.__version__]
    done = command("--version")
    assert (done.returncode, done.stdout.split()) == (0, [event_tensor.__version__])


def test_the_wheel_has_the_four_packages_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == shipped_files(ROOT)
    assert {f"{package}/py.typed" for package in PACKAGES} <= packaged


def test_its_metadata(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_string(archive.read(name).decode())
    assert metadata["Version"] == event_tensor.__version__
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# Event Tensor")
    assert "![" not in metadata.get_payload()  # a picture would need an address
    assert metadata.get_all("Project-URL") is None and metadata["Home-page"] is None


def test_the_demo_runs_from_the_wheel(installed, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program, *arguments):
        return subprocess.run([program, *arguments], capture_output=True, text=True, cwd=tmp_path,
                              timeout=HANG_S, env=environment)

    where = run(installed.with_name("python"), "-c", (
        "import event_tensor, frontend; from event_tensor import compile_decode_loop as f; "
        "print(event_tensor.__file__, frontend.__file__, f.__module__)"))
    *files, module = where.stdout.split()
    assert module == "frontend.compile"
    assert all(Path(file).is_relative_to(installed.parents[1]) for file in files), where.stdout
    done = run(installed, "generate", "demo", "--prompt", "hacker:", "--max-new-tokens", "24")
    assert done.returncode == 0, done.stderr
    assert "A person who enjoys exploring the details" in done.stdout
