"""`event-tensor warmup`: a cold and a warm start, each in a process of its own, phase by phase."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from event_tensor.errors import EventTensorError, UserError
from frontend.model_files.directories import temporary_folder
from frontend.report.bench.baselines import require_available, require_known
from frontend.report.console import Record, print_table
from frontend.report.machine import provenance
from frontend.report.warmup.child import runs_on_gpu

STARTS = ("cold", "warm")
CHILD = "frontend.report.warmup.child"  # the program of one start
# environment variable → folder: everything that is compiled goes to one of these
CACHES = {"EVENT_TENSOR_CACHE": "event-tensor", "TORCHINDUCTOR_CACHE_DIR": "inductor",
          "TRITON_CACHE_DIR": "triton"}


@dataclass(frozen=True, slots=True)
class WarmupOptions:
    """compile: options of compile_decode_loop. compare: baselines that are started likewise."""

    model: str
    prompt_tokens: int = 32
    compile: Mapping[str, Any] = field(default_factory=dict)
    compare: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_known(self.compare)
        if "llama-cpp" in self.compare:
            raise UserError("--compare llama-cpp has nothing to compile; warmup compares with "
                            "transformers, torch-compile and cuda-graph")
        if self.prompt_tokens < 1:
            raise UserError(f"--prompt-tokens is {self.prompt_tokens}; give at least 1")


def run_warmup(options: WarmupOptions) -> Record:
    """Cold: nothing compiled yet; warm: the same again. Both with a cache folder that nobody else
    uses. Files of the model may be in memory already, both times."""
    device = "cpu"
    if options.compare:  # refused before anything is started
        device = "cuda" if runs_on_gpu(options.compile) else "cpu"
        for name in options.compare:
            require_available(name, device)
    starts = start_twice(CHILD, {
        "model": options.model, "prompt_tokens": options.prompt_tokens,
        "compile": dict(options.compile)}, options.model)
    warm = starts["warm"]
    return {"model": options.model, "prompt_tokens": warm["prompt_tokens"], **starts,
            "compare": {name: start_baseline(name, options.model, device, warm)
                        for name in options.compare},
            "compilations_after_ready": sum(
                s["after_ready"]["compilations"] for s in starts.values()),
            "your_cache": own_cache(), **provenance()}


def start_baseline(name: str, model: str, device: str, ours: Record) -> Record:
    """The same two starts of a baseline, of the same type, threads and prompt length as ours."""
    from frontend.families.read_config import read_config
    from frontend.model_files.resolve import resolve_model
    from persistent_runtime.cpu.cores import available_cores

    directory = resolve_model(model)
    vocab, length = read_config(directory).vocab_size, ours["prompt_tokens"]
    return start_twice("frontend.report.bench.baselines.start", {
        "engine": name, "model": str(directory), "dtype": ours["dtype"], "device": device,
        "workers": ours["workers"] if device == "cpu" else available_cores(), "depth_ids": [],
        "prompt_ids": [k % vocab for k in range(1, length + 1)], "new_tokens": 3,
        "sampled": False, "seed": 0}, name)


def start_twice(module: str, argument: Record, what: str) -> dict[str, Record]:
    """A cold start and a warm one, with a cache folder of their own for whatever compiles."""
    with temporary_folder("a start with an empty cache") as cache:
        folders = {name: str(Path(cache) / folder) for name, folder in CACHES.items()}
        return {name: start(module, argument, folders, what) for name in STARTS}


def start(module: str, argument: Record, folders: Mapping[str, str], what: str) -> Record:
    """One start in a process of its own; spawned_s is its wall time as this process sees it."""
    root = str(Path(__file__).parents[3])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    begin_s = time.monotonic()
    done = subprocess.run([sys.executable, "-m", module, json.dumps(argument)],
                          env={**os.environ, **folders, "PYTHONPATH": path},
                          capture_output=True, text=True)
    try:
        record = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise EventTensorError(f"the process that was to start {what} ended with code "
                               f"{done.returncode}: {last}") from None
    if "error" in record:
        raise UserError(record["error"])
    record["spawned_s"] = round(record.pop("end_s") - begin_s, 6)
    del record["begin_s"]
    return dict(record)


def own_cache() -> Record:
    """What the user's own cache would give the next start: ready, or why not. problem: why nothing
    can be added to it, "" where it can."""
    from persistent_runtime.cache.files import write_problem
    from persistent_runtime.cache.kept_file import changed_keys
    from persistent_runtime.cpu.compile.disk_cache import FUNCTIONS

    current, key = FUNCTIONS.directory(), FUNCTIONS.key()
    changed = [changed_keys(f.key, key) for f in FUNCTIONS.folders() if f.key and f.path != current]
    state = "invalidated" if changed else "empty"
    if FUNCTIONS.kept_in(current):
        state, changed = "ready", []
    return {"directory": str(current), "state": state, "problem": write_problem(current),
            "changed": min(changed, key=len, default=[])}


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
    if record["compare"]:
        print_table("the same up to the first token that a compiled or captured step made",
                    ["", *(f"{name} s" for name in STARTS), "of that compiling", "", "recompiled"],
                    [comparison(name, starts) for name, starts in
                     {"event-tensor": record, **record["compare"]}.items()])


def comparison(name: str, starts: Record) -> list[str]:
    """Wall time of both starts, what of it was compiling or capturing, and compilations after."""
    def compiling_s(start: Record) -> float:
        return sum(float(p["seconds"]) for p in start["phases"]
                   if p["name"].startswith(("compile", "capture")))

    return [name, *(f"{starts[kind]['wall_s']:.1f}" for kind in STARTS),
            *(f"{compiling_s(starts[kind]):.1f}" for kind in STARTS),
            str(sum(starts[kind]["after_ready"]["compilations"] for kind in STARTS))]


def sentences(record: Record) -> list[str]:
    """Caches, counts, shapes and compilations in words."""
    cold, warm = (record[name] for name in STARTS)
    counts, served, own = warm["counts"], warm["after_ready"], record["your_cache"]
    notes = {f["note"] for start in (cold, warm) for f in start["functions"] if f["note"]}
    reasons = {f["reason"] for f in warm["functions"] if f["reason"]}
    state = own["state"] + (f", changed: {', '.join(own['changed'])}" if own["changed"] else "")
    state += f", cannot be written ({own['problem']})" if own["problem"] else ""
    return [
        f"cold: {cold['cache']['misses']} functions compiled; warm: {warm['cache']['hits']} found "
        f"in the cache, {warm['cache']['misses']} compiled"
        + (f" ({'; '.join(sorted(reasons))})" if reasons else ""),
        f"your own cache {own['directory']}: {state}",
        f"workers {warm['workers']}: {warm['workers_from']}",
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
