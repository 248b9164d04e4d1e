"""compile_decode_loop: a model directory, Hub id or loaded model → a decoder."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from event_tensor.errors import UserError
from event_tensor.refusals import LIMITS, require_room, reserving
from frontend.config.decoder_config import DecoderConfig
from frontend.decode.decoder import Decoder
from frontend.decode.end_tokens import MAX_END_TOKENS
from frontend.decode.memory import allocate_tensors, weight_gigabytes
from frontend.decode.phases import Phases
from frontend.families.decoder import EMBEDDING, build_step
from frontend.families.read_config import parse_config, read_config
from frontend.families.registry import family_named
from frontend.graph.check_tensors import check_tensors
from frontend.graph.control import Limits
from frontend.graph.operators import Operators
from frontend.graph.rope_cache import KeptRopeTables
from frontend.graph.routings import sample_routings
from frontend.graph.tiles import ATTENTION_ROWS, choose_tiles
from frontend.model_files.checkpoint import Checkpoint, from_model, open_checkpoint
from frontend.model_files.expert_weights import read_weight, stored_tensors
from frontend.model_files.loaded_models import unwrapped
from frontend.model_files.model_changes import refuse_changes
from frontend.model_files.resolve import resolve_model
from frontend.model_files.tokenizer import Tokenizer, load_tokenizer
from persistent_runtime.backends import find_backend, may_be_cuda
from persistent_runtime.formats import DTYPES, FLOAT32
from persistent_runtime.launch.memory import Buffers
from persistent_runtime.megakernel import Megakernel
from persistent_runtime.storage import torch_dtype
from scheduling.names import check_name

TORCH_BYTES = 600 << 20, 160 << 20  # address space, and data in it; it takes 480 and 122 MiB
DEFAULT_MAX_CONTEXT = 4096
DEFAULT_MAX_REQUESTS = ATTENTION_ROWS  # memory for logits and partial results is held for so many
Progress = Callable[[str, int, int], None]  # phase, done, total


def compile_decode_loop(model: str | Path | Any, *, backend: str = "auto", schedule: str = "auto",
                        dtype: str = "auto", kv_dtype: str = "auto",
                        max_context: int | None = None,
                        max_requests: int = DEFAULT_MAX_REQUESTS, workers: int | None = None,
                        progress: Progress | None = None, phases: Phases | None = None) -> Decoder:
    """Compile the whole decode loop of a decoder-only model into one persistent kernel.

    model: a directory in Hugging Face layout, "demo" or "demo-moe", a Hub id, or a loaded
    transformers model, which may be compiled by torch or have adapters that merge.
    schedule: a name of `scheduling.names.SCHEDULES`, which says what each does. dtype: auto (the
    checkpoint's), float32, bfloat16 or float16; norms and biases that a checkpoint of 16-bit
    matrices has in float32 stay so beside 16-bit matrices. kv_dtype: of the KV cache, auto (that of
    the matrices) or one of the same. max_context: positions of the KV cache, by default the model's
    own limit but no more than 4096. max_requests: prompts that one launch can serve; the KV cache
    has room for all of them, which a CPU provides as it is used. workers: threads, by default one
    per core that it may use. phases: books what start-up takes (`Decoder.warmup`).

    Raises UserError for anything that cannot be used, naming it and the remedy.
    """
    if phases is None:
        phases = Phases()
        phases.fill("before compile_decode_loop")
    with phases("find backend"):
        if may_be_cuda(backend):
            import_torch(phases)
        runs_on = find_backend(backend)
    check_name(schedule)
    target = runs_on.target(workers)
    config, checkpoint, tokenizer = _open(model, phases)
    stored_dtype = _stored_dtype(checkpoint)
    weight_dtype = _choose_dtype("dtype", dtype, stored_dtype)
    context = _choose_context(max_context, config)
    operators = Operators(
        config, choose_tiles(config, target, weight_dtype),
        Limits(_check_requests(max_requests), context, max_requests * (context + 1),
               MAX_END_TOKENS), weight_dtype,
        kv_dtype=_choose_dtype("kv_dtype", kv_dtype, weight_dtype),
        float32_vectors=(frozenset() if FLOAT32.name in (stored_dtype, weight_dtype)
                         else checkpoint.vectors(FLOAT32.name)))
    decoding = operators.for_decoding()
    with phases("build graph"):
        build_step(operators)
        build_step(decoding)
    with phases("open checkpoint"):
        check_tensors(checkpoint, operators.weight_shapes, config.family)
    buffers = runs_on.buffers()
    with phases("buffers"):  # before what takes long, so that a refusal comes soon
        allocate_tensors(operators, buffers)
        _bind_rope_tables(operators, buffers, context, phases)
    kernel = Megakernel(
        decoding.graph, operators.graph, backend=runs_on, workers=workers, policy=schedule,
        samples=partial(sample_routings, config), keep_schedules=True,
        phase=phases,
        progress=(lambda done, total: progress("compiling", done, total)) if progress else None)
    with phases("weights"), reserving(
            f"the weights: {weight_gigabytes(operators)} in {weight_dtype}",
            f"leave out --dtype, use a smaller model, or {LIMITS}"):
        _load_weights(operators, checkpoint, buffers, progress, phases)
        checkpoint.close()
    decoder = Decoder(config, operators, kernel, kernel.parts[1], buffers, tokenizer, phases)
    decoder.prepare()
    return decoder


def _open(model: str | Path | Any, phases: Phases
          ) -> tuple[DecoderConfig, Checkpoint, Tokenizer | None]:
    if isinstance(model, (str, Path)):
        with phases("config"):
            directory = resolve_model(str(model))
            config = read_config(directory)
        with phases("open checkpoint"):
            checkpoint = open_checkpoint(directory, family_named(config.family).tensor_name)
        with phases("tokenizer"):
            return config, checkpoint, load_tokenizer(directory)
    model = unwrapped(model)
    if not hasattr(model, "state_dict") or not hasattr(model, "config"):
        raise UserError(f"{type(model).__name__} is neither a path, a Hub id nor a transformers "
                        f"model")
    generation = getattr(model, "generation_config", None)
    config = parse_config(model.config.to_dict(), generation.to_dict() if generation else None)
    family = family_named(config.family)
    refuse_changes(model, family.classes)
    return config, from_model(model, family.tensor_name), None


def _stored_dtype(checkpoint: Checkpoint) -> str:
    """That of the matrices; without an embedding any will do until check_tensors says so."""
    return checkpoint.dtype(EMBEDDING) if EMBEDDING in checkpoint.names() else FLOAT32.name


def _choose_dtype(option: str, wanted: str, by_default: str) -> str:
    if wanted == "auto":
        return by_default
    if wanted not in DTYPES:
        raise UserError(f"{option} {wanted!r} is not supported; use auto, {', '.join(DTYPES)}")
    return wanted


def _choose_context(max_context: int | None, config: DecoderConfig) -> int:
    if max_context is None:
        return min(config.max_position_embeddings, DEFAULT_MAX_CONTEXT)
    if not 2 <= max_context <= config.max_position_embeddings:
        raise UserError(
            f"max_context {max_context} is outside 2..{config.max_position_embeddings}, the "
            f"positions this model was made for (max_position_embeddings)")
    return max_context


def _check_requests(max_requests: int) -> int:
    if not 1 <= max_requests <= ATTENTION_ROWS:
        raise UserError(f"max_requests is {max_requests}; one launch serves from 1 to "
                        f"{ATTENTION_ROWS} prompts")
    return max_requests


def import_torch(phases: Phases) -> None:
    """A start that needs nothing of torch does without: it takes longer than all the rest."""
    if "torch" not in sys.modules:
        with phases("import torch"), reserving("importing torch"):
            require_room(*TORCH_BYTES)
            import_module("torch")


def _load_weights(operators: Operators, checkpoint: Checkpoint, buffers: Buffers,
                  progress: Progress | None, phases: Phases) -> None:
    """Weights stay where the file mapping or the loaded model has them; only another dtype, a
    strided layout or experts stored one by one make a copy, one tensor at a time."""
    shapes = operators.weight_shapes
    kept = {name: spec.dtype for name, spec in operators.weights.items()}
    if any(checkpoint.dtype(part) != kept.get(part, operators.dtype)  # else a single expert's
           for part in stored_tensors(checkpoint, shapes)):
        import_torch(phases)
    total = len(operators.weights)
    for done, (name, spec) in enumerate(operators.weights.items()):
        if progress:
            progress("weights", done + 1, total)
        on_device = checkpoint.on_device(name)
        if on_device is not None:
            buffers.bind(spec, on_device.to(torch_dtype(spec.dtype)).contiguous())
        else:
            weight = read_weight(checkpoint, name, shapes[name], spec.dtype)
            buffers.bind(spec, np.ascontiguousarray(weight))


def _bind_rope_tables(operators: Operators, buffers: Buffers, max_context: int, phases: Phases
                      ) -> None:
    for rope, tables in operators.ropes.items():
        kept = KeptRopeTables(rope, operators.config.head_dim, max_context)
        if not kept.is_kept:
            import_torch(phases)
        with reserving(f"the rotary tables of {max_context} positions",
                       "give a smaller --max-context"):
            cos, sin = kept.read()
        buffers.bind(tables.cos, np.ascontiguousarray(cos))
        buffers.bind(tables.sin, np.ascontiguousarray(sin))
