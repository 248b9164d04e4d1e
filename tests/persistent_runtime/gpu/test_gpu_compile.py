"""The GPU worker compiled for chips that are not there: resources, memory order, cache key."""

import importlib.util
import re
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton")

from block_formats import FOUR_BITS, register_gpu_loader
from cases import sampled
from declared import declared
from triton.compiler import ASTSource

from benchmarks.gpu.compile import SHAPES, compile_shape, decoder_graph
from benchmarks.gpu.variants import changed
from event_tensor.derive import derive_events
from event_tensor.device_function import DeviceFunction
from event_tensor.errors import UserError
from event_tensor.graph import Graph
from event_tensor.instantiate import instantiate
from event_tensor.tensors import TensorSpec
from persistent_runtime.body_table import BodyTable
from persistent_runtime.function_table import variant
from persistent_runtime.functions import dense as device_functions
from persistent_runtime.functions import experts as moe_functions
from persistent_runtime.functions.activations import ACTIVATIONS
from persistent_runtime.gpu import backend
from persistent_runtime.gpu.bodies import tokens
from persistent_runtime.gpu.compile import registry
from persistent_runtime.gpu.compile.compile_only import SHARED_MEMORY_LIMIT, compile_worker
from persistent_runtime.gpu.compile.registry import (
    configurations,
    kernel_fingerprint,
    kernel_tables,
    make_configuration,
)
from persistent_runtime.gpu.single_tile import call_of
from persistent_runtime.gpu.target import TILE_TARGETS, tile_target_of
from persistent_runtime.gpu.worker.worker import run_worker
from scheduling.pipeline import build_schedule
from scheduling.policies import POLICIES
from scheduling.prune import prune_waits
from scheduling.target import H200

register_gpu_loader()
DENSE, MOE = ("qwen3-0.6b", "llama-3.2-1b", "qwen3-8b"), "qwen3-30b-a3b"
SOME = [("qwen3-0.6b", 80), ("llama-3.2-1b", 90), ("qwen3-8b", 100)]
COMPILED = [pytest.param((shape, arch), id=f"{shape}-sm{arch}",
                         marks=() if (shape, arch) in SOME else pytest.mark.exhaustive)
            for shape in DENSE for arch in SHARED_MEMORY_LIMIT]


@pytest.fixture(scope="module", params=COMPILED)
def worker(request, tmp_path_factory):
    from triton import knobs

    with knobs.cache.scope():
        knobs.cache.dir = str(tmp_path_factory.mktemp("triton"))
        return compile_shape(request.param[0], "bfloat16", request.param[1])


def test_the_worker_fits_the_chip(worker):
    print(f"sm_{worker.arch}: {worker.registers} registers, {worker.shared_bytes} bytes shared, "
          f"{worker.seconds:.1f} s")
    assert (worker.stack_bytes, worker.spill_bytes) == (0, 0)
    assert worker.shared_bytes <= SHARED_MEMORY_LIMIT[worker.arch]


# hidden size, experts, experts per row, their inner width
MOE_SHAPES = {"qwen3-30b-a3b": (2048, 128, 8, 768), "mixtral-8x7b": (4096, 8, 2, 14336),
              "largest router": (2880, 256, 16, 2880), "odd": (1000, 5, 3, 333)}


def moe_configurations(shape, arch):
    hidden, experts, top_k, inner = MOE_SHAPES[shape]
    parameters = {"tile_m": 16, "tile_n": 32, "hidden_size": hidden, "num_experts": experts,
                  "top_k": top_k}
    target = TILE_TARGETS[tile_target_of(arch)]
    return {of: make_configuration(of, [call_of(of.function, parameters | {
        "in_features": inner if of.function.name == "expert_down" else hidden})], False, target)
        for of in (variant(function, "bfloat16") for function in declared(moe_functions))}


@pytest.mark.parametrize("shape, arch", sampled(
    product(MOE_SHAPES, SHARED_MEMORY_LIMIT),
    [("largest router", 80), ("odd", 90), ("mixtral-8x7b", 90), ("qwen3-30b-a3b", 100)]))
def test_an_moe_block_fits_the_chip(shape, arch):
    worker = compile_worker(moe_configurations(shape, arch), arch)
    assert (worker.stack_bytes, worker.spill_bytes) == (0, 0)
    assert worker.shared_bytes <= SHARED_MEMORY_LIMIT[arch]


def in_formats(graph, changes):
    """The graph with tensors in other formats: role and rank → format."""
    changed_tensors, other = {}, Graph(graph.name)

    def changed_tensor(tensor):
        dtype = changes.get((tensor.role, len(tensor.shape))) if tensor is not None else None
        if dtype is None or tensor.name.startswith("rope"):
            return tensor
        return changed_tensors.setdefault(
            tensor, TensorSpec(tensor.name, tensor.shape, dtype, tensor.role))

    for call in graph.calls:
        other.call_device(call.function, name=call.name, args=list(map(changed_tensor, call.args)),
                          parameters=call.parameters)
    return other


def test_mixed_formats_fit_the_chip():
    graph = in_formats(decoder_graph("qwen3-0.6b", "bfloat16", 132), {
        ("weight", 1): "float32", ("kv_cache", 4): "float16"})
    worker = compile_worker(configurations(graph.calls), 90)
    print(f"{worker.registers} registers, {worker.shared_bytes} bytes shared")
    assert (worker.stack_bytes, worker.spill_bytes) == (0, 0)
    assert worker.shared_bytes <= SHARED_MEMORY_LIMIT[90]


def test_a_format_of_blocks_compiles():
    """All that reads matrices takes the loader; how many registers it needs is its own affair."""
    graph = in_formats(decoder_graph("qwen3-0.6b", "bfloat16", 132), {
        ("weight", 1): "float32", ("weight", 2): FOUR_BITS.name})
    worker = compile_worker(configurations(graph.calls), 90)
    assert worker.spill_bytes == 0 and worker.shared_bytes <= SHARED_MEMORY_LIMIT[90]


# parameters with which models of other families call the products
VARIANTS = {"plain": {}, "gemma": {"norm_offset": 1.0, "activation": ACTIVATIONS["gelu_tanh"]},
            "gelu": {"activation": ACTIVATIONS["gelu"]},
            "granite": {"activation": ACTIVATIONS["relu2"], "multiplier": 0.22}}


@pytest.mark.parametrize("name", sampled(VARIANTS, ("gemma", "granite")))
def test_variants_of_the_products_fit_the_chip(name):
    parameters = VARIANTS[name]
    common = {"tile_m": 256, "tile_n": 32, "in_features": 4096, "row_bytes": 8192}
    functions = (device_functions.norm_linear, device_functions.linear_residual,
                 device_functions.norm_gate_up)
    configured = {of: make_configuration(of, [call_of(of.function, common | {
        name: value for name, value in parameters.items() if name in of.function.parameters})],
        False, TILE_TARGETS[tile_target_of(90)])
        for of in (variant(function, "bfloat16") for function in functions)}
    worker = compile_worker(configured, 90)
    assert (worker.stack_bytes, worker.spill_bytes) == (0, 0)


def test_calls_of_one_kernel_share_their_activation():
    calls = [call_of(device_functions.norm_gate_up, {
        "tile_n": 32, "in_features": 64, "row_bytes": 128, "activation": number})
        for number in (0, 2)]
    of = variant(device_functions.norm_gate_up, "bfloat16")
    with pytest.raises(UserError, match="calls of norm_gate_up give activation the values 0, 2"):
        make_configuration(of, calls, False, TILE_TARGETS["generic"])


@pytest.mark.parametrize("shape, arch", sampled(
    [("qwen3-0.6b", 90), ("qwen3-8b", 100), (MOE, 80), (MOE, 90), (MOE, 100)],
    [("qwen3-0.6b", 90), (MOE, 100)]))
def test_the_worker_with_a_ready_queue_has_its_bodies_once(shape, arch):
    worker = compile_shape(shape, "bfloat16", arch, is_dynamic=True)
    print(f"{shape}: {worker.registers} registers, compiled in {worker.seconds:.1f} s")
    assert (worker.stack_bytes, worker.spill_bytes) == (0, 0)
    assert worker.ptx.count("cp.async.cg.shared.global") < 200
    slot_polls = worker.ptx.count("ld.acquire.gpu.global.b64")
    assert slot_polls == 3  # for events of a row, for those it looks up, for the end of a step
    check_releases(worker.ptx)


@pytest.mark.parametrize("arch", sampled(SHARED_MEMORY_LIMIT, [80]))
def test_an_moe_block_fits_beside_the_dense_functions(monkeypatch, arch):
    monkeypatch.setitem(SHAPES, "attention of qwen3-30b-a3b", SHAPES["qwen3-8b"] | {
        "hidden_size": 2048, "num_key_value_heads": 4})
    graph = decoder_graph("attention of qwen3-30b-a3b", "bfloat16", 132)
    configured = {of: value for of, value in configurations(
        graph.calls, target=tile_target_of(arch)).items()
        if of.function is not device_functions.norm_gate_up}
    worker = compile_worker(configured | moe_configurations("qwen3-30b-a3b", arch), arch)
    assert (worker.stack_bytes, worker.spill_bytes) == (0, 0)


def instructions(ptx):
    """The PTX without comments, directives and the moves that only prepare operands."""
    lines = (line.split("//")[0].strip() for line in ptx.splitlines())
    return [line for line in lines if line and not line.startswith((".", "mov", "$L__tmp"))]


def test_a_release_follows_a_barrier_with_no_store_between(worker):
    check_releases(worker.ptx)


def check_releases(ptx):
    """The barrier orders the stores of the whole CTA before the threads that release."""
    lines = instructions(ptx)
    releases = [k for k, line in enumerate(lines) if re.search(r"\.(release|acq_rel)\.", line)]
    assert len(releases) >= 3  # notify, arrival at the end of a step, its opening
    for k in releases:
        barrier = max(j for j in range(k) if "bar.sync" in lines[j])
        between = lines[barrier + 1:k]
        assert not any(re.search(r"\b(st|atom|red)\.|^\$L", line) for line in between), between


def test_the_poll_acquires_in_one_thread_and_a_barrier_follows(worker):
    lines = instructions(worker.ptx)
    polls = [k for k, line in enumerate(lines) if line.startswith("ld.acquire.gpu.global.s32")]
    # a first look, the loop, and a look after a filled slot; for events and for the end of a step
    assert len(polls) == 6
    for k in polls:
        barrier = min(j for j in range(k, len(lines)) if "bar.sync" in lines[j])
        assert not any(line.startswith("ld.global") for line in lines[k:barrier])
    # only thread 0 gets to the poll, and tells the others what it found
    assert "mov.u32 thread, %tid.x;" in worker.ptx
    assert worker.ptx.count("barrier.cta.red.or.pred") == 4
    assert worker.ptx.count("%globaltimer") >= 4  # every poll has a deadline


def test_weights_stream_through_shared_memory(worker):
    assert worker.ptx.count("cp.async.cg.shared.global") > 20


def test_no_partial_result_leaves_its_register_as_it_was(worker):
    lines = [line.strip() for line in worker.ptx.splitlines()]
    guarded = [k for k, line in enumerate(lines) if re.match(r"@!?%p\d+ ld\.shared", line)]
    assert guarded
    for k in guarded:
        register = re.search(r"%r\w+", lines[k])[0]
        assert re.fullmatch(rf"mov\.b\d+ {register}, 0;", lines[k - 1]), lines[k - 1:k + 1]


def test_a_variant_of_the_benchmark_changes_one_block_by_name():
    with changed({"gated.depth": 512, "kv_block": 32, "tile_columns": 4}):
        tiles = TILE_TARGETS["generic"]
        assert (tiles.gated.depth, tiles.head.depth, tiles.kv_block) == (512, 128, 32)
        assert backend.H200.tile_columns == 4
    assert TILE_TARGETS["generic"].gated.depth == 128


@pytest.mark.parametrize("shape", DENSE)
def test_a_task_of_a_decode_step_waits_for_one_event(shape):
    """Each wait is a look at memory that other multiprocessors write, one after the other."""
    graph = derive_events(decoder_graph(shape, "bfloat16", H200.workers))
    bindings = {"tokens": 1, "logit_rows": 1, "context": 128, "kv_splits": 2}
    pruned = prune_waits(POLICIES["static"](instantiate(graph, bindings), H200))
    schedule = build_schedule(graph, bindings, "static", H200)
    assert np.diff(pruned.table.wait_indptr).max() > 1 == np.diff(schedule.table.wait_indptr).max()


def test_the_variants_that_wait_for_a_gpu_can_be_made():
    session = Path(__file__).parents[3] / "benchmarks" / "gpu" / "session.sh"
    text = session.read_text(encoding="utf-8")
    variants = re.findall(r"--variant \w+ ([\w.= ]+)", text.replace("\\\n", " "))
    assert len(variants) > 3
    for given in variants:
        settings = dict(change.split("=") for change in given.split())
        with changed({name: int(value) for name, value in settings.items()}):
            tiles = TILE_TARGETS["generic"]
            assert tiles.ring_pieces == int(settings["ring_pieces"])
            assert backend.H200.tile_columns == int(settings.get("tile_columns", 8))


def edited(tmp_path, name, old, new):
    """A copy of tokens.py with one change, loaded as a module."""
    source = Path(tokens.__file__).read_text(encoding="utf-8")
    assert old in source
    path = tmp_path / name / "tokens_copy.py"
    path.parent.mkdir()
    path.write_text(source.replace(old, new), encoding="utf-8")
    spec = importlib.util.spec_from_file_location("tokens_copy", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def source_hash(function, fingerprint):
    signature = {"launch": "*i64", "first_worker": "i32"} | dict.fromkeys(
        ("FUNCTIONS", "CONFIGURATIONS", "FINGERPRINT", "INTERPRETED"), "constexpr")
    return ASTSource(run_worker, signature, constexprs={
        "FUNCTIONS": (function,), "CONFIGURATIONS": (), "FINGERPRINT": fingerprint,
        "INTERPRETED": False}).hash()


@pytest.mark.parametrize("old, new", [
    ("token = best_token(arguments, logit_row)", "token = best_token(arguments, logit_row) + 1"),
    ("value > best", "value >= best"),  # in a helper
])
def test_editing_a_device_function_changes_the_cache_key(tmp_path, monkeypatch, old, new):
    monkeypatch.setattr(registry, "_bodies", BodyTable("GPU", "", ()))
    before = edited(tmp_path, "before", old, old).select_token
    after = edited(tmp_path, "after", old, new).select_token
    # the compiler alone does not see the difference …
    assert source_hash(before, "") == source_hash(after, "")
    # … with the fingerprint it does
    prints = [kernel_fingerprint([function]) for function in (before, after)]
    assert prints[0] != prints[1]
    assert source_hash(before, prints[0]) != source_hash(after, prints[1])


def test_the_fingerprint_covers_configurations():
    prints = {kernel_tables(configurations(decoder_graph("qwen3-0.6b", dtype, 132).calls))[2]
              for dtype in ("bfloat16", "float16", "float32")}
    assert len(prints) == 3


def test_a_function_without_a_body_is_refused_by_name():
    with pytest.raises(UserError, match="'nameless' has no GPU body.*@gpu_body"):
        registry.body_of(DeviceFunction("nameless", (), ()))
