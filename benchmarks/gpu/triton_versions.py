"""The GPU worker compiled by every supported version of Triton; needs no GPU.

    python benchmarks/gpu/triton_versions.py 3.6.0 3.9.0

Each version gets a virtual environment of its own, `.venv-triton-<version>`, which later runs
reuse. Prints registers, stack, spills and shared memory; ends with 1 where a version fails or
spills.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import tomllib
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
OLDEST_AND_NEWEST = ("3.6.0", "3.9.0")


def environment_python(version: str) -> Path:
    """The interpreter of the environment for one version, which is made if it is not there."""
    folder = ROOT / f".venv-triton-{version}"
    python, installed = folder / "bin" / "python", folder / ".installed"
    if not installed.exists():
        venv.create(folder, with_pip=True, clear=True)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", "constraints.txt", *project["dependencies"]], cwd=ROOT,
                       check=True)
        # torch asks for the version it was built with; only the compiler is used here
        subprocess.run([*pip, "--no-deps", f"triton=={version}"], cwd=ROOT, check=True)
        installed.touch()
    return python


def compile_with(version: str, shape: str, arch: int, ring_pieces: str) -> dict[str, Any]:
    """What benchmarks/gpu/compile.py says with this version, or the last line of its error."""
    python = environment_python(version)
    with tempfile.TemporaryDirectory() as cache:  # compiled anew, not found
        done = subprocess.run(
            [str(python), "benchmarks/gpu/compile.py", "--shape", shape, "--arch", str(arch),
             *(["--ring-pieces", ring_pieces] if ring_pieces else [])],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": cache},
            capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        return {"triton": version, "shape": shape, "arch": arch, "error": lines[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    if result["triton"] != version:
        result["error"] = f"the environment has Triton {result['triton']}; delete it and try again"
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("versions", nargs="*", default=list(OLDEST_AND_NEWEST), metavar="version")
    parser.add_argument("--shape", default="qwen3-0.6b", help="a shape of benchmarks/shapes.py")
    parser.add_argument("--arch", type=int, default=90, choices=(80, 90, 100))
    parser.add_argument("--ring-pieces", default="", help="slots of the ring, if not the default")
    options = parser.parse_args()
    failed = False
    for version in options.versions:
        result = compile_with(version, options.shape, options.arch, options.ring_pieces)
        failed |= bool(result.get("error") or result["spill_bytes"] or result["stack_bytes"])
        print(json.dumps(result), flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
