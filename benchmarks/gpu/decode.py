"""Batch-1 decoding of published shapes on this GPU, beside PyTorch with CUDA graphs.

    python benchmarks/gpu/decode.py --shapes llama-3.2-1b --contexts 128 4096

Random bfloat16 weights, one copy for all sides; 127 dependent decode steps after `context`
positions, sides in random order in every round. The speed of a side counts only if its largest
logit error against a float32 reference is no worse than that of transformers in bfloat16; the
reference is fed the tokens that the megakernel chose. Writes benchmarks/results/gpu_decode.json.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import random
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.bandwidth import Bandwidth  # noqa: E402
from benchmarks.gpu.baseline import DecodeStep, GraphedSteps, pack_layers  # noqa: E402
from benchmarks.make_model import model_config  # noqa: E402
from benchmarks.shapes import PUBLISHED  # noqa: E402
from frontend.compile import compile_decode_loop  # noqa: E402
from frontend.decode.decoder import Decoder  # noqa: E402
from frontend.families.read_config import parse_config  # noqa: E402
from frontend.report.bench.run import kv_bytes  # noqa: E402
from frontend.report.machine import gpu_name, provenance  # noqa: E402
from frontend.report.random_prompt import random_prompt  # noqa: E402

RESULT = Path(__file__).parents[1] / "results" / "gpu_decode.json"
NEW_TOKENS = 128
STEPS = NEW_TOKENS - 1  # the first new token comes from prefill
PROMPT_TOKENS = 32  # the last positions of the context; what lies before them is depth
OURS, REFERENCE = "event_tensor", "transformers_bfloat16"
GRAPHS, COMPILED = "cuda_graphs", "torch_compile_cuda_graphs"
# GB/s of the datasheet, by the name that the driver gives
DATASHEET_GB_S = {"NVIDIA H200": 4800, "NVIDIA H100 80GB HBM3": 3350, "NVIDIA H100 PCIe": 2000,
                  "NVIDIA A100-SXM4-80GB": 2039, "NVIDIA A100-SXM4-40GB": 1555}


def random_model(shape: str, device: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0
                 ) -> Any:
    """A transformers model of a published shape, made on the device; norms lie around 1."""
    import transformers

    config = model_config(shape)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.normal_(1.0 if is_norm else 0.0,
                              0.1 if is_norm else config.initializer_range)
    return model.eval()


def check_shared(model: Any, decoder: Decoder) -> None:
    """Raises RuntimeError if the decoder reads other weights than the baseline."""
    addresses = decoder._buffers.addresses
    own = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    for name, spec in decoder._operators.weights.items():
        if addresses[spec] != own[name]:
            raise RuntimeError(f"{name} was copied; both sides must read the same weights")


def device_tensor(decoder: Decoder, spec: Any) -> torch.Tensor:
    return torch.as_tensor(decoder._buffers.owners()[spec])


def caches_of(decoder: Decoder) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Keys and values of every layer, [1, kv_heads, max_context, head_dim]."""
    tensors = [device_tensor(decoder, spec) for spec in decoder._operators.kv_caches.values()]
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def our_logits(decoder: Decoder, fed: list[int], context: int) -> torch.Tensor:
    """Logits of the timed decode steps, one launch each: [steps, vocab] float32."""
    steps, logits = len(fed) - context, decoder._operators.tensors["logits"]
    launches, control = decoder._launches, decoder._launches.control
    control.token_ids[0, :len(fed)] = fed
    control.finished[0] = 1  # nothing is to be appended to the request
    control.row_request[0] = control.logit_row[0] = 0
    rows = []
    for k in range(steps):
        control.row_position[0] = context + k
        decoder.kernel.launch([launches.segment(1, 1, context + NEW_TOKENS)]).wait()
        rows.append(device_tensor(decoder, logits).reshape(-1)[:decoder.config.vocab_size].clone())
    return torch.stack(rows)


@torch.inference_mode()
def reference_logits(model: Any, fed: list[int], context: int) -> torch.Tensor:
    """Of a copy of the model in float32, in one pass: [steps, vocab]."""
    exact = copy.deepcopy(model).float()
    ids = torch.tensor([fed], device=model.device)
    with sdpa_kernel(SDPBackend.MATH):  # other kernels may round products to tf32
        return exact(input_ids=ids, use_cache=False, logits_to_keep=len(fed) - context).logits[0]


@torch.inference_mode()
def stepwise_logits(model: Any, fed: list[int], context: int) -> torch.Tensor:
    """Of the model itself, token by token over its own KV cache: [steps, vocab] float32."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    ids = torch.tensor([fed], device=model.device)
    model(input_ids=ids[:, :context], past_key_values=cache, use_cache=True, logits_to_keep=1)
    rows = [model(input_ids=ids[:, p:p + 1], past_key_values=cache, use_cache=True).logits[0, -1]
            for p in range(context, len(fed))]
    return torch.stack(rows).float()


def compare(logits: torch.Tensor, reference: torch.Tensor) -> dict[str, Any]:
    difference = (logits - reference).abs()
    return {"max_abs_logit_error": float(f"{difference.max().item():.4g}"),
            "relative_logit_error": float(f"{(difference.norm() / reference.norm()).item():.4g}"),
            "tokens_equal": int((logits.argmax(-1) == reference.argmax(-1)).sum())}


def check(model: Any, decoder: Decoder, baselines: dict[str, GraphedSteps], prompt: list[int],
          output: list[int]) -> dict[str, Any]:
    """Every side against the float32 reference, all fed the same tokens."""
    fed, context = [*prompt, *output[:-1]], len(prompt)
    reference = reference_logits(model, fed, context)
    ours = our_logits(decoder, fed, context)
    sides = {OURS: compare(ours, reference),
             REFERENCE: compare(stepwise_logits(model, fed, context), reference)}
    sides |= {name: compare(side.logits(output[:-1]), reference)
              for name, side in baselines.items()}
    limit = sides[REFERENCE]["max_abs_logit_error"]
    for side in sides.values():
        side["passes"] = side["max_abs_logit_error"] <= limit
    # the tokens of the launch that is timed are those of the logits that are judged
    same = int((ours.argmax(-1).cpu() == torch.tensor(output[1:])).sum())
    return {"reference": "transformers float32", "tokens_compared": STEPS,
            "timed_tokens_reproduced": same, "sides": sides}


def percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 5) for p in (10, 50, 90)}


class Timings:
    """Milliseconds per step: the mean of each round, and single steps of all rounds."""

    def __init__(self) -> None:
        self.rounds: list[float] = []
        self.steps: list[float] = []
        self.outputs: list[list[int]] = []

    def record(self, step_bytes: int, bandwidth_gb_s: float, datasheet_gb_s: float | None
               ) -> dict[str, Any]:
        median = statistics.median(self.rounds)
        achieved = step_bytes / median / 1e6
        return {"ms_per_step": round(median, 5), "rounds_ms": percentiles(self.rounds),
                "steps_ms": percentiles(self.steps), "gb_s": round(achieved, 1),
                "fraction_of_measured": round(achieved / bandwidth_gb_s, 4),
                "fraction_of_datasheet":
                    round(achieved / datasheet_gb_s, 4) if datasheet_gb_s else None,
                "rounds_with_same_tokens": sum(o == self.outputs[0] for o in self.outputs)}


def measure(decoder: Decoder, baselines: dict[str, GraphedSteps], prompt: list[int], rounds: int,
            bandwidth: Bandwidth) -> dict[str, Timings]:
    """Rounds over all sides, each round in another order."""
    timings = {name: Timings() for name in (OURS, *baselines)}

    def run_ours() -> None:
        result = decoder.generate(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True)
        gaps = result.inter_token_ms
        timings[OURS].rounds.append(float(gaps.mean()))
        timings[OURS].steps += gaps.tolist()
        timings[OURS].outputs.append(result.output_ids)

    def run_baseline(name: str, side: GraphedSteps) -> Callable[[], None]:
        def run() -> None:
            total, output = side.replay(first_token)
            timings[name].rounds.append(total[0] / STEPS)
            timings[name].steps += side.replay(first_token, each=True)[0]
            timings[name].outputs.append([first_token, *output])
        return run

    first_token = decoder.generate(prompt, max_new_tokens=1, ignore_eos=True).output_ids[0]
    sides = [run_ours, *(run_baseline(*item) for item in baselines.items()), bandwidth.measure]
    order = random.Random(0)
    gc.collect()
    for _ in range(rounds):
        for side in order.sample(sides, len(sides)):
            torch.cuda.synchronize()
            side()
    return timings


def make_baselines(decode: DecodeStep, context: int, compiled: bool
                   ) -> tuple[dict[str, GraphedSteps], dict[str, str]]:
    """(the sides that work, why the others do not)"""
    sides, problems = {GRAPHS: GraphedSteps(decode, context, STEPS, compiled=False)}, {}
    if compiled:
        try:
            sides[COMPILED] = GraphedSteps(decode, context, STEPS, compiled=True)
        except Exception as error:  # whatever the compiler raises, the other side still counts
            problems[COMPILED] = f"{type(error).__name__}: {error}".splitlines()[0]
            torch.cuda.synchronize()
    return sides, problems


def run_case(shape: str, context: int, model: Any, decoder: Decoder, decode: DecodeStep,
             options: argparse.Namespace, bandwidth: Bandwidth) -> dict[str, Any]:
    prompt = random_prompt(decoder, context, seed=context)
    output = decoder.generate(prompt, max_new_tokens=NEW_TOKENS, ignore_eos=True).output_ids
    # the baselines go on from the KV cache that this has filled
    baselines, problems = make_baselines(decode, context, options.compile)
    correctness = check(model, decoder, baselines, prompt, output)
    torch.cuda.empty_cache()
    timings = measure(decoder, baselines, prompt, options.rounds, bandwidth)
    step_bytes = decoder.weight_bytes + kv_bytes(decoder, context + NEW_TOKENS // 2)
    datasheet = DATASHEET_GB_S.get(gpu_name() or "")
    speed = {name: side.record(step_bytes, bandwidth.read_gb_s, datasheet)
             for name, side in timings.items()}
    for side in speed.values():  # above 1, the megakernel is faster
        side["ratio"] = round(side["ms_per_step"] / speed[OURS]["ms_per_step"], 4)
    return {"shape": shape, "context": context, "prompt_tokens": PROMPT_TOKENS,
            "depth": context - PROMPT_TOKENS, "new_tokens": NEW_TOKENS, "timed_steps": STEPS,
            "rounds": options.rounds, "step_bytes": step_bytes, "workers": decoder.num_workers,
            "floor_ms": round(step_bytes / bandwidth.read_gb_s / 1e6, 5),
            "speed": speed, "correctness": correctness, "not_measured": problems}


def show(case: dict[str, Any]) -> None:
    print(f"\n{case['shape']}, context {case['context']}: floor {case['floor_ms']:.3f} ms")
    sides = case["correctness"]["sides"]
    for name, side in case["speed"].items():
        found = sides[name]
        verdict = "passes" if found["passes"] else "FAILS, so this speed does not count"
        print(f"  {name:26s} {side['ms_per_step']:.4f} ms/step (p10 {side['steps_ms']['p10']:.4f}, "
              f"p90 {side['steps_ms']['p90']:.4f}), ratio {side['ratio']:.3f}, "
              f"{side['fraction_of_measured']:.1%} of measured bandwidth; logit error "
              f"{found['max_abs_logit_error']:g} of {sides[REFERENCE]['max_abs_logit_error']:g} "
              f"allowed, {found['tokens_equal']} of {STEPS} tokens: {verdict}")
    for name, problem in case["not_measured"].items():
        print(f"  {name:26s} not measured: {problem}")


def driver_version() -> str | None:
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
                              capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 else None


def run_shape(shape: str, options: argparse.Namespace, bandwidth: Bandwidth
              ) -> list[dict[str, Any]]:
    model = random_model(shape, "cuda")
    # before the megakernel is compiled, which then reads the packed memory
    layers = pack_layers(model, parse_config(model.config.to_dict(), None))
    decoder = compile_decode_loop(model, backend="cuda", max_requests=1,
                                  max_context=max(options.contexts) + NEW_TOKENS)
    check_shared(model, decoder)
    decode = DecodeStep(model, layers, decoder.config, caches_of(decoder))
    cases = []
    for context in options.contexts:
        cases.append(run_case(shape, context, model, decoder, decode, options, bandwidth))
        show(cases[-1])
    return cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["llama-3.2-1b", "qwen3-0.6b", "qwen3-8b"],
                        choices=list(PUBLISHED))
    parser.add_argument("--contexts", nargs="+", type=int, default=[128, 4096])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no-compile", dest="compile", action="store_false",
                        help="leave torch.compile out: it takes minutes")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error(f"--rounds is {options.rounds}; give at least 5")
    if min(options.contexts) < PROMPT_TOKENS:
        parser.error(f"--contexts is {min(options.contexts)}; give at least {PROMPT_TOKENS}")
    if not torch.cuda.is_available():
        print("decode.py needs a GPU that torch can see, and there is none.", file=sys.stderr)
        return 2
    bandwidth = Bandwidth()
    result: dict[str, Any] = {
        "gpu": gpu_name(), "driver": driver_version(), "cuda": torch.version.cuda,
        "datasheet_gb_s": DATASHEET_GB_S.get(gpu_name() or ""), **provenance(), "cases": []}
    for shape in options.shapes:
        result["cases"] += run_shape(shape, options, bandwidth)
        result["bandwidth_gb_s"] = bandwidth.record()
        # after every shape: what is measured stays when a later one fails
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        gc.collect()
        torch.cuda.empty_cache()
    print(f"\nread {bandwidth.read_gb_s:.0f} GB/s, copy {bandwidth.copy_gb_s:.0f} GB/s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
