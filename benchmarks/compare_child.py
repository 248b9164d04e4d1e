"""One side of compare_commits.py: compiles a model with the checkout that PYTHONPATH names.

    PYTHONPATH=CHECKOUT python benchmarks/compare_child.py MODEL MAX_CONTEXT

Prints a line of JSON with the first token, which ends the start; then answers every line of stdin,
a request, with one line of JSON. It knows nothing of this checkout, only
`frontend.compile.compile_decode_loop`, which every commit has.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import frontend.compile


def main() -> None:
    model, max_context = sys.argv[1], int(sys.argv[2])
    decoder = frontend.compile.compile_decode_loop(model, max_context=max_context)
    first = decoder.generate([1, 2, 3], max_new_tokens=1, ignore_eos=True, temperature=0.0)
    print(json.dumps({"output_ids": first.output_ids, "workers": decoder.num_workers,
                      "checkout": str(Path(frontend.compile.__file__).parents[1])}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        results = [decoder.generate(request["prompt"], max_new_tokens=request["new_tokens"],
                                    ignore_eos=True, **request["sampling"])
                   for _ in range(request["repeats"])]
        print(json.dumps({
            "tpot_ms": statistics.median(float(gap) for r in results for gap in r.inter_token_ms),
            "ttft_ms": statistics.median(r.ttft_ms for r in results),
            "output_ids": results[0].output_ids}), flush=True)


if __name__ == "__main__":
    main()
