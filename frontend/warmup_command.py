"""`event-tensor warmup`: a cold and a warm start, each in a process of its own, phase by phase."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from event_tensor.errors import EventTensorError, UserError
from frontend.console import print_table
from frontend.machine import provenance

Record = dict[str, Any]
STARTS = ("cold", "warm")


@dataclass(frozen=True, slots=True)
class WarmupOptions:
    """compile: options of compile_decode_loop. delays_s: phase → seconds, see Phases."""

    model: str
    prompt_tokens: int = 32
    compile: Mapping[str, Any] = field(default_factory=dict)
    delays_s: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise UserError(f"--prompt-tokens is {self.prompt_tokens}; give at least 1")


def run_warmup(options: WarmupOptions) -> Record:
    """Cold: nothing compiled yet; warm: the same again. Both with a cache folder that nobody else
    uses. Files of the model may be in memory already, both times."""
    starts = {}
    with tempfile.TemporaryDirectory() as cache:
        for name in STARTS:
            starts[name] = start(options, cache)
    return {"model": options.model, "prompt_tokens": starts["warm"]["prompt_tokens"], **starts,
            "compilations_after_ready": sum(
                s["after_ready"]["compilations"] for s in starts.values()),
            "your_cache": own_cache(), **provenance()}


def start(options: WarmupOptions, cache: str) -> Record:
    """One start in a process of its own; spawned_s is its wall time as this process sees it."""
    argument = {"model": options.model, "prompt_tokens": options.prompt_tokens,
                "compile": dict(options.compile), "delays_s": dict(options.delays_s)}
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    begin_s = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "frontend.first_token", json.dumps(argument)],
                          env=os.environ | {"EVENT_TENSOR_CACHE": cache, "PYTHONPATH": path},
                          capture_output=True, text=True)
    try:
        record = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise EventTensorError(f"the process that was to start {options.model} ended with code "
                               f"{done.returncode}: {last}") from None
    if "error" in record:
        raise UserError(record["error"])
    record["spawned_s"] = round(record.pop("end_s") - begin_s, 6)
    del record["begin_s"]
    return dict(record)


def own_cache() -> Record:
    """What the user's own cache would give the next start: ready, or why not."""
    from persistent_runtime.cpu.disk_cache import (
        cache_directory,
        cache_folders,
        changed_keys,
        runtime_key,
    )

    current, key = cache_directory(), runtime_key()
    changed = [changed_keys(f.key, key) for f in cache_folders() if f.key]
    if current.is_dir():
        return {"directory": str(current), "state": "ready", "changed": []}
    state = "invalidated" if changed else "empty"
    return {"directory": str(current), "state": state, "changed": min(changed, key=len, default=[])}


def phase_rows(record: Record) -> list[tuple[str, list[Record | None]]]:
    """(phase, its record in each start); a function's hit and its compilation share a row."""
    rows: dict[str, list[Record | None]] = {}
    for position, name in enumerate(STARTS):
        for phase in record[name]["phases"]:
            row = rows.setdefault(phase["name"].removesuffix(" (cache hit)"), [None, None])
            row[position] = phase
    rest = rows.pop("unattributed")
    return [*rows.items(), ("unattributed", rest)]


def show(record: Record) -> None:
    """The phases of both starts side by side, and the rest in sentences."""
    def cells(phase: Record | None) -> list[str]:
        return [f"{phase['seconds'] * 1e3:.1f}", f"{phase['share']:.1%}"] if phase else ["-", "-"]

    rows = [[name, *cells(cold), *cells(warm)] for name, (cold, warm) in phase_rows(record)]
    rows.append(["process start to first token", *(
        cell for name in STARTS for cell in (f"{record[name]['wall_s'] * 1e3:.1f}", "100%"))])
    print_table(f"{record['model']}: from the start of the process to the first token, "
                f"{record['prompt_tokens']} prompt tokens, {record['cpu']}",
                ["phase", "cold ms", "", "warm ms", ""], rows)
    print("\n".join(sentences(record)))


def sentences(record: Record) -> list[str]:
    """Caches, counts, shapes and compilations in words."""
    cold, warm = (record[name] for name in STARTS)
    counts, served, own = warm["counts"], warm["after_ready"], record["your_cache"]
    notes = {f["note"] for start in (cold, warm) for f in start["functions"] if f["note"]}
    reasons = {f["reason"] for f in warm["functions"] if f["reason"]}
    state = own["state"] + (f", changed: {', '.join(own['changed'])}" if own["changed"] else "")
    return [
        f"cold: {cold['cache']['misses']} functions compiled; warm: {warm['cache']['hits']} found "
        f"in the cache, {warm['cache']['misses']} compiled"
        + (f" ({'; '.join(sorted(reasons))})" if reasons else ""),
        f"your own cache {own['directory']}: {state}",
        *sorted(notes),
        f"a decode step: {counts['tasks']} tasks of {counts['device_functions']} device functions "
        f"on {warm['workers']} workers, {counts['events']} events, {counts['waits']} of "
        f"{counts['waits_before_pruning']} waits left",
        f"{warm['compilations']} compilation served {served['schedules']} schedules in "
        f"{served['launches'] + 1} launches of other shapes; compilations after ready: "
        f"{record['compilations_after_ready']}"]


def check_strict(record: Record) -> None:
    """Raises UserError if anything was compiled after the first token."""
    if record["compilations_after_ready"]:
        names = sorted({name for start in STARTS for name in record[start]["after_ready"]["names"]})
        raise UserError(f"{record['compilations_after_ready']} compilations after ready "
                        f"({', '.join(names)}); a compilation must serve every shape")
