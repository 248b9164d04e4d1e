"""What sampling costs per token: TPOT sampled beside TPOT greedy, of one and the same kernel.

    python benchmarks/cpu/sampling_cost.py

Both sides take turns in every round, in random order. Writes benchmarks/results/sampling_cost.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.make_model import SHAPES, model_config, write_model  # noqa: E402
from event_tensor import compile_decode_loop  # noqa: E402
from frontend.decode.decoder import Decoder  # noqa: E402
from frontend.decode.generation import percentiles_ms  # noqa: E402
from frontend.report.machine import Contention, provenance  # noqa: E402

RESULT = Path(__file__).parents[1] / "results" / "sampling_cost.json"
SIDES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8, "top_k": 50, "top_p": 0.95, "seed": 0}}
LARGEST_COST = 0.03  # of TPOT


def measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Medians over rounds; `cost`: of the rounds' ratios sampled / greedy, less one."""
    decoder = compile_decode_loop(directory, workers=options.workers)
    rng = random.Random(0)
    prompt = [rng.randrange(decoder.config.vocab_size) for _ in range(options.prompt_tokens)]
    rounds: dict[str, list[float]] = {name: [] for name in SIDES}
    gaps: dict[str, list[float]] = {name: [] for name in SIDES}
    contention = Contention()
    for number in range(-1, options.rounds):  # the first one warms up
        for name in rng.sample(list(SIDES), len(SIDES)):
            result = decoder.generate(prompt, max_new_tokens=options.new_tokens, ignore_eos=True,
                                      **SIDES[name])
            if number >= 0:
                gaps[name] += result.inter_token_ms.tolist()
                rounds[name].append(float(np.median(result.inter_token_ms)))
    ratios = [sampled / greedy for sampled, greedy in
              zip(rounds["sampled"], rounds["greedy"], strict=True)]
    return {
        "tpot_ms": {name: percentiles_ms(np.array(times)) for name, times in gaps.items()},
        "round_tpot_ms": {name: [round(t, 4) for t in times] for name, times in rounds.items()},
        "cost": round(statistics.median(ratios) - 1, 4), "largest_cost": LARGEST_COST,
        "correctness": same_as_greedy(decoder, prompt, options.new_tokens),
        "workers": decoder.num_workers, "backend": decoder.backend,
        "busy_with_others": contention.share()}


def same_as_greedy(decoder: Decoder, prompt: list[int], new_tokens: int) -> dict[str, int]:
    """Drawn from the one likeliest token, the sampled tokens must be the greedy ones."""
    greedy, drawn = (
        decoder.generate(prompt, max_new_tokens=new_tokens, ignore_eos=True, **side).output_ids
        for side in (SIDES["greedy"], SIDES["sampled"] | {"top_k": 1}))
    return {"tokens_compared": new_tokens,
            "tokens_equal": sum(a == b for a, b in zip(greedy, drawn, strict=True))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="qwen3-0.6b", choices=SHAPES)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        directory = write_model(model_config(options.shape), Path(folder) / options.shape)
        result = {"shape": options.shape, "prompt_tokens": options.prompt_tokens,
                  "new_tokens": options.new_tokens, "rounds": options.rounds, "sides": SIDES,
                  **measure(directory, options), **provenance()}
    text = json.dumps(result, indent=1)
    print(text)
    options.output.write_text(text + "\n", encoding="utf-8")
    if result["cost"] > LARGEST_COST:
        sys.exit(f"sampling costs {result['cost']:.1%} of TPOT, more than {LARGEST_COST:.0%}")


if __name__ == "__main__":
    main()
