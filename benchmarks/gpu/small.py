"""A small model on the GPU, short enough for compute-sanitizer; tokens are those of the CPU.

    compute-sanitizer --tool memcheck python benchmarks/gpu/small.py --pieces 8
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.compile import ring  # noqa: E402
from benchmarks.make_model import model_config, write_model  # noqa: E402
from frontend.compile import compile_decode_loop  # noqa: E402

# rows of whole pieces of the ring
SHAPE = {"num_hidden_layers": 1, "hidden_size": 512, "intermediate_size": 1024,
         "initializer_range": 0.05}
PROMPT = list(range(3, 12))  # too short for a CPU to round its rows to bfloat16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pieces", type=int, default=0, help="slots of the ring; 0 for none")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--new-tokens", type=int, default=4)
    parser.add_argument("--backend", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    outputs = {}
    with tempfile.TemporaryDirectory() as folder:
        directory = write_model(model_config("tiny-qwen3", **SHAPE), Path(folder))
        for backend in ("cpu", options.backend):
            with ring(options.pieces):
                decoder = compile_decode_loop(directory, backend=backend, max_context=64,
                                              workers=options.workers)
            outputs[backend] = decoder.generate(
                PROMPT, max_new_tokens=options.new_tokens, ignore_eos=True).output_ids
    print(outputs)
    return int(outputs["cpu"] != outputs[options.backend])


if __name__ == "__main__":
    raise SystemExit(main())
