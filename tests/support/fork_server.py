"""A process that has imported what is slow to import, and forks for each program it is to run."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from paths import PYTHONPATH, TESTS

HANG_S = 600  # what ends a program that would hang; nothing takes so long, on the busiest machine


class ForkServer:
    """`server("model", "DIRECTORY")` → standard output and errors of that program."""

    def __init__(self, script: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(script), "serve"], env=dict(environment), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)

    def __call__(self, *arguments: object) -> str:
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as output:
            request = {"arguments": [str(a) for a in arguments], "output": output.name}
            print(json.dumps(request), file=self._process.stdin, flush=True)
            ready, _, _ = select.select([self._process.stdout], [], [], HANG_S)
            answer = self._process.stdout.readline() if ready else ""
            text = output.read()
        if not answer:
            self.kill()
        assert answer, f"{arguments} hang, or their server died: {text}"
        assert json.loads(answer)["code"] == 0, text
        return text

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=HANG_S)

    def kill(self) -> None:
        """Ends the server and what it has forked."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def serve(programs: Mapping[str, Callable[..., None]]) -> None:
    """Answers each line of standard input once the program that it names has ended."""
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(programs, request)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


def _become(programs: Mapping[str, Callable[..., None]], request: Mapping[str, str]) -> None:
    """Runs a program to its end, which is this process's end as well."""
    output = os.open(request["output"], os.O_WRONLY | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(output, standard)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    name, *arguments = request["arguments"]
    code: object = 1
    try:
        programs[name](*arguments)
        code = 0
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code or 0) if isinstance(code, int | None) else 1)


def interpreter_environment() -> dict[str, str]:
    return {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": PYTHONPATH}


@pytest.fixture(scope="session")
def interpreted() -> Iterator[ForkServer]:
    """`interpreted("model", DIRECTORY, …)`: output of a program of interpreted.py."""
    server = ForkServer(TESTS / "support" / "interpreted.py", interpreter_environment())
    yield server
    server.close()
