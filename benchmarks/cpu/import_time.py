"""What `import event_tensor` takes in a fresh interpreter; nothing else is imported by it.

    python benchmarks/cpu/import_time.py

Writes benchmarks/results/import_time.json; ends with 1 above the limit.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from frontend.report.machine import provenance  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "import_time.json"
PROCESSES, LARGEST_MS = 21, 50.0
PROGRAM = ("import time; begin = time.perf_counter(); import event_tensor; "
           "print((time.perf_counter() - begin) * 1e3)")


def import_ms() -> float:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return float(done.stdout)


def main() -> int:
    import_ms()  # compiles the bytecode
    taken = [import_ms() for _ in range(PROCESSES)]
    median = statistics.median(taken)
    result = {"median_ms": round(median, 3), "limit_ms": LARGEST_MS,
              "all_ms": [round(ms, 3) for ms in taken], **provenance()}
    print(json.dumps(result, indent=1))
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(median > LARGEST_MS)


if __name__ == "__main__":
    raise SystemExit(main())
