"""`event-tensor doctor`: what is installed, and whether it generates what transformers does."""

from __future__ import annotations

import gc
from typing import Any

from event_tensor.errors import EventTensorError, UserError
from frontend.compile import Progress, compile_decode_loop
from frontend.model_files.directories import temporary_folder
from frontend.model_files.resolve import resolve_model
from frontend.report.cache import STORES
from frontend.report.console import print_table
from frontend.report.machine import cpu_features, cpu_name, gpu_name, memory_gb, versions
from persistent_runtime.cache.files import VARIABLE, base_directory, write_problem
from persistent_runtime.cache.stores import folders_of
from persistent_runtime.cpu.calibration.record import GENERIC, is_generic, kept_calibrations
from persistent_runtime.cpu.calibration.record import VARIABLE as MACHINE
from persistent_runtime.cpu.compile.disk_cache import FUNCTIONS
from persistent_runtime.cpu.cores import find_cores

PROMPT_IDS = [1, 2, 3, 4, 5]
NEW_TOKENS = 8


def examine(progress: Progress | None = None) -> dict[str, Any]:
    """Facts and checks; `passed` says whether every check did."""
    cores = find_cores()
    checks = [check_cache(), check_generation(progress)]
    return {
        "versions": versions(),
        "cpu": {"name": cpu_name(), "cores": cores.count, "cores_from": cores.reason,
                "features": cpu_features()},
        "calibrations": kept_calibrations(), "calibrated": not is_generic(),
        "memory_gb": memory_gb(), "gpu": gpu_name(),
        "cache": {"directory": str(base_directory()),
                  "mb": round(sum(folder.bytes for folder in folders_of(STORES)) / 1e6, 1)},
        "checks": checks, "passed": all(check["passed"] for check in checks)}


def check_cache() -> dict[str, Any]:
    """A cache that is only read is as good, if this installation's functions are in it."""
    folder, name = FUNCTIONS.directory(), "kernel cache"
    problem = write_problem(folder)
    if not problem:
        return {"name": name, "passed": True, "detail": "can be written"}
    functions = FUNCTIONS.kept_in(folder)
    if functions:
        return {"name": name, "passed": True,
                "detail": f"{functions} functions can be read from {folder}, which cannot be "
                          f"written ({problem}); what it lacks is compiled at every start"}
    return {"name": name, "passed": False,
            "detail": f"{folder} cannot be written ({problem}) and holds nothing for this "
                      f"installation; every start compiles anew until {VARIABLE} names a directory "
                      f"that can be written"}


def check_generation(progress: Progress | None) -> dict[str, Any]:
    """Tokens in float32 must be those of transformers, one for one."""
    from frontend.report.reference import generate_timed, load_transformers

    name = "generation"
    try:
        temporary_folder("importing transformers").cleanup()
        try:
            directory = resolve_model("demo")
            decoder = compile_decode_loop(directory, dtype="float32", max_context=64,
                                          progress=progress)
            reference, subject = load_transformers(directory, "float32"), "the demo model"
        except (UserError, OSError):  # an incomplete folder of the demo model
            reference, subject = tiny_model(), "a small random model"
            decoder = compile_decode_loop(reference, max_context=64, progress=progress)
        ours = decoder.generate(PROMPT_IDS, max_new_tokens=NEW_TOKENS, ignore_eos=True,
                                temperature=0.0).output_ids
    except EventTensorError as error:
        return {"name": name, "passed": False, "detail": str(error)}
    theirs, _, _ = generate_timed(reference, PROMPT_IDS, NEW_TOKENS)
    del reference
    gc.collect()
    equal = sum(a == b for a, b in zip(ours, theirs, strict=False))
    return {"name": name, "passed": ours == theirs,
            "detail": f"{equal} of {NEW_TOKENS} tokens of {subject} equal those of transformers "
                      f"in float32"}


def tiny_model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        initializer_range=0.1)).eval()


def calibration_text(values: dict[str, Any]) -> str:
    """What a record of `kept_calibrations` says of the machine."""
    return (f"{values['dtype']}: {values['bandwidth_gb_s']:g} GB/s ({values['worker_gb_s']:g} by "
            f"one alone, {values['cache_gb_s']:g} from caches), {values['gflops']:g} GFLOP/s, "
            f"{values['task_us']:g} us per task, {values['dependency_us']:g} us to another worker, "
            f"{values['pop_us']:g} us per pop")


def show(record: dict[str, Any]) -> None:
    cpu, cache = record["cpu"], record["cache"]
    rows = [[name, found or "missing"] for name, found in record["versions"].items()]
    rows += [["processor", cpu["name"]], ["workers", f"{cpu['cores']}: {cpu['cores_from']}"],
             ["features", " ".join(cpu["features"])], ["memory", f"{record['memory_gb']} GB"],
             ["GPU", record["gpu"] or "none that torch sees"],
             ["kernel cache", f"{cache['directory']}, {cache['mb']} MB"],
             *([f"measured, {c['workers']} workers", calibration_text(c)]
               for c in record["calibrations"])]
    if not record["calibrated"]:
        rows.append(["measured", f"not used: {MACHINE} is {GENERIC}"])
    print_table("event-tensor doctor", ["", "found"], rows)
    for check in record["checks"]:
        print(f"{'pass' if check['passed'] else 'FAIL'}  {check['name']}: {check['detail']}")
