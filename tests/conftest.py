"""What the tests share: small random models, and the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cases
import golden_files
import pytest
from fork_server import HANG_S, interpreted
from golden_files import golden
from hypothesis import HealthCheck, settings
from paths import ROOT

__all__ = ["HANG_S", "ROOT", "golden", "interpreted"]

# the same examples on every machine, and no clock in the verdict
settings.register_profile("fixed", derandomize=True, deadline=None, database=None,
                          suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fixed")

# the same schedules on every machine; what measures one says so
os.environ["EVENT_TENSOR_MACHINE"] = "generic"

# torch's own threads spin while they wait for one another, which takes longer than the small
# products of the tests where others keep the cores busy; read when torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

COMMAND = [sys.executable, "-c", "from frontend.cli import main; main()"]
TinyModel = Callable[..., Path]


# a background job of a shell starts with Ctrl-C ignored, and so would the programs under test
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    golden_files.add_option(parser)
    cases.add_option(parser)


def pytest_configure(config: pytest.Config) -> None:
    cases.configure(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    cases.leave_out_exhaustive(config, items)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """`tiny_model(family, dtype=..., seed=..., **config fields)` → a directory without tokenizer.

    The same arguments give the same directory.
    """
    from benchmarks.make_model import model_config, write_model

    made: dict[Any, Path] = {}

    def make(family: str, *, dtype: str = "float32", seed: int = 0, **overrides: Any) -> Path:
        key = (family, dtype, seed, repr(sorted(overrides.items())))
        if key not in made:
            directory = tmp_path_factory.mktemp(f"tiny-{family}-")
            config = model_config(f"tiny-{family}", **overrides)
            made[key] = write_model(config, directory, dtype=dtype, seed=seed)
        return made[key]

    return make


def wait_until(condition: Callable[[], object]) -> None:
    """Looks again and again until it holds; fails rather than hang."""
    end_s = time.monotonic() + HANG_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.01)


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`command("generate", "demo", …)` in this process: it saves the imports."""
    from frontend.cli import run

    def call(*arguments: object) -> Ended:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        return Ended(code, *capfd.readouterr())

    return call


def command_environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **changes}


@pytest.fixture(scope="session")
def run_command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run_command("generate", "demo", …)` in a process of its own; keywords are environment
    variables. code: what runs in the place of the command line's `main`."""

    def run(*arguments: object, code: str = COMMAND[-1], **environment: str
            ) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*COMMAND[:-1], code, *map(str, arguments)], capture_output=True,
                              text=True, timeout=HANG_S, env=command_environment(**environment))

    return run
