"""A baseline seen from the benchmark: a child process that answers one request at a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import frontend
from event_tensor.errors import UserError
from frontend.report.bench.baselines.engine import Work


class BaselineProcess:
    """Loads and warms up on construction. Use it as a context manager: it ends with the block.

    Raises UserError when the process reports one, or ends before it has answered.
    """

    def __init__(self, work: Work) -> None:
        self.name = work.engine
        self._log = tempfile.TemporaryFile("w+", errors="replace")
        root = str(Path(frontend.__file__).parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "frontend.report.bench.baselines.child"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)})
        try:
            self.ready = self._ask(asdict(work))  # version, load_s, warm_up_s
        except BaseException:
            self.end()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, kind: str) -> dict[str, Any]:
        """A round, `kind` being greedy or sampled: output_ids, start_ns, token_times_ns and
        peak_rss_mb."""
        return self._ask({"run": kind})

    def save_logits(self, output_ids: list[int], path: Path) -> None:
        """Writes the logits that chose `output_ids`, [tokens, vocab] float32, as a .npy file."""
        self._ask({"save_logits": str(path), "output_ids": output_ids})

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it has ended; its log says why
            pass
        line = self._process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"failed": self._last_words()}
        if "failed" in found:
            raise UserError(f"{self.name} has failed ({found['failed']}); leave it out of "
                            f"--compare")
        if "error" in found:
            raise UserError(found["error"])
        return found

    def _last_words(self) -> str:
        """Of a process that has ended without an answer."""
        code = self._process.wait()
        if code == -signal.SIGINT:  # Ctrl-C reaches both, and it may be the first to end
            raise KeyboardInterrupt
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return ": ".join([f"exit code {code}", *lines[-1:]])

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:  # of what was never read
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()
