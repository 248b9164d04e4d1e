"""A process that starts, generates one token, and says where the time went: a line of JSON.

    python -m frontend.report.warmup.child '{"model": "demo", …}'

Then it serves other shapes, and says whether anything had to be compiled for them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from event_tensor.errors import EventTensorError
from frontend.decode.phases import Phases

if TYPE_CHECKING:
    from frontend.decode.decoder import Decoder

OTHER_PROMPTS = (1, 2, 7, 19, 64, 300)  # tokens; one or several chunks of prefill
NEW_TOKENS = 3


def main() -> int:
    options = json.loads(sys.argv[1])
    try:
        record = start(options)
    except EventTensorError as error:
        print(json.dumps({"error": str(error)}))
        return 2
    print(json.dumps(record))
    return 0


def start(options: dict[str, Any]) -> dict[str, Any]:
    phases = Phases()
    phases.fill("interpreter")
    with phases("import numpy"):
        import_module("numpy")
    with phases("import event-tensor"):
        from frontend.compile import compile_decode_loop, import_torch
        from frontend.report.random_prompt import random_prompt
        from frontend.report.warmup.after_ready import compilations
        from persistent_runtime.backends import may_be_cuda
    if may_be_cuda(options["compile"].get("backend", "auto")):
        import_torch(phases)
    if runs_on_gpu(options["compile"]):
        with phases("import triton"):
            from frontend.report.warmup.triton_stages import listen_to_triton
        listen_to_triton()
    else:
        with phases("import numba"):
            import_module("numba")
    decoder = compile_decode_loop(options["model"], phases=phases, **options["compile"])
    with phases("make a prompt"):
        length = min(options["prompt_tokens"], decoder.max_context - 2)
        prompt = random_prompt(decoder, length, seed=0)
    stream = decoder.stream(prompt, max_new_tokens=2, ignore_eos=True)
    next(stream)
    stream.close()
    record = decoder.warmup() | {
        "prompt_tokens": length, "begin_s": phases.begin_s, "end_s": phases.end_s}
    with compilations() as compiled:
        shapes = serve_other_shapes(decoder)
    return record | {"after_ready": {"compilations": len(compiled), "names": compiled,
                                     "launches": shapes,
                                     "schedules": len(decoder.schedules)}}


def runs_on_gpu(options: Mapping[str, Any]) -> bool:
    """Whether compile_decode_loop with these options would choose a GPU."""
    from persistent_runtime.backends import is_cuda

    return is_cuda(options.get("backend", "auto"))


def serve_other_shapes(decoder: Decoder) -> int:
    """Launches with prompts of many lengths, alone and together; how many."""
    from frontend.report.random_prompt import random_prompt

    lengths = [n for n in OTHER_PROMPTS if n + NEW_TOKENS <= decoder.max_context]
    prompts = [random_prompt(decoder, n, seed=n) for n in lengths]
    batches = [[prompt] for prompt in prompts] + [prompts[:2]] * (decoder.max_requests > 1)
    for batch in batches:
        decoder.generate(batch, max_new_tokens=NEW_TOKENS, ignore_eos=True)
    return len(batches)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # taking torch and LLVM apart takes longer than a second
