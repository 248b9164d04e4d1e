"""The persistent kernel on a real device: bodies, whole models, deadlocks, Ctrl-C."""


import body_references as references
import pytest
import select_token
import test_cpu_attention as attention
import test_cpu_device_functions as dense
import test_moe_device_functions as moe_references
import test_sampling_device as sampling_references
import torch

pytest.importorskip("triton")

pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]

PROMPT, NEW_TOKENS = list(range(3, 290)), 24  # more than one chunk of prefill
FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
# products of bfloat16 pairs and of tf32 triples keep 16 bits and more of the activations
LOOSER = 16


@pytest.fixture
def device_bodies(monkeypatch):
    """Puts the GPU bodies in the place of the CPU bodies in the references' modules."""
    from persistent_runtime.gpu.memory import DeviceMemory
    from persistent_runtime.gpu.single_tile import run_tile

    offset_ns = DeviceMemory().clock_offset_ns

    def on_device(declaration, dtype, values, tile, scratch_bytes=0, step=None):
        run_tile(declaration, dtype, values, tile, step=step, device="cuda")
        if "token_time" in values:
            values["token_time"][values["token_time"] != 0] += offset_ns

    monkeypatch.setattr(references, "ROUNDING", LOOSER * references.ROUNDING)
    for module in (references, moe_references, select_token):
        monkeypatch.setattr(module, "run_tile", on_device)


@pytest.mark.usefixtures("device_bodies")
@pytest.mark.parametrize("dtype", references.DTYPES)
def test_bodies(dtype):
    for shape in references.SHAPES:
        dense.test_linear(dtype, shape, True)
        dense.test_gate_up_silu(dtype, shape, False)
    dense.test_lm_head_and_select_token(dtype, 1, 1)
    dense.test_embed_tokens(dtype)
    for head_dim in (64, 80, 128):
        attention.test_rope_append(dtype, head_dim, True)
    for case in ((64, 1, 1, 0, 150), (80, 4, 3, 0, 200), (128, 7, 2, 0, 70), (128, 2, 5, 40, 200)):
        for rows_are_apart in (False, True):
            attention.test_attention(dtype, case, 4, rows_are_apart)


@pytest.mark.usefixtures("device_bodies")
@pytest.mark.parametrize("dtype", references.DTYPES)
def test_moe_bodies(dtype):
    for product in moe_references.PRODUCTS:
        moe_references.test_experts(dtype, product, moe_references.random_logits)
    for hidden in (64, 83):
        moe_references.test_group_rows(dtype, (16, 5, 3, 4), hidden)
        moe_references.test_combine_experts((16, 5, 3, 4), hidden)


@pytest.mark.usefixtures("device_bodies")
def test_routing():
    for routing in moe_references.ROUTINGS:
        for make_logits in moe_references.LOGITS:
            moe_references.test_select_experts(make_logits, routing, 1)
    moe_references.test_select_experts_for_the_largest_step()


@pytest.mark.usefixtures("device_bodies")
def test_sampling():
    for seed in range(20):
        sampling_references.test_the_filters_keep_what_transformers_keeps(seed)
    sampling_references.test_greedy_with_a_penalty_takes_the_largest_penalised_logit()
    sampling_references.test_logprobs_are_those_of_the_models_own_logits()


def device_decoder(directory, **options):
    from frontend.compile import compile_decode_loop

    return compile_decode_loop(directory, backend="cuda", max_context=512, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_the_cpu_backend(family, tiny_model):
    from frontend.compile import compile_decode_loop

    directory = tiny_model(family, seed=1)
    expected = compile_decode_loop(directory, backend="cpu", max_context=512).generate(
        PROMPT, max_new_tokens=NEW_TOKENS, ignore_eos=True).output_ids
    decoder = device_decoder(directory)
    for _ in range(3):  # counters, schedules and control tensors start afresh
        result = decoder.generate(PROMPT, max_new_tokens=NEW_TOKENS, ignore_eos=True)
        assert result.output_ids == expected
        assert (result.inter_token_ms > 0).all()


def test_weights_of_a_model_on_the_device_stay_where_they_are(tiny_model):
    import transformers

    from frontend.compile import compile_decode_loop

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model("qwen3")).cuda()
    decoder = compile_decode_loop(model, backend="cuda", max_context=64)
    for name, spec in decoder._operators.weights.items():
        assert decoder._buffers.addresses[spec] == model.state_dict()[name].data_ptr()


@pytest.mark.parametrize("family, schedule", [
    ("llama", "dynamic"), ("qwen3_moe", "static"), ("qwen3_moe", "dynamic"),
    ("qwen3_moe", "hybrid"), ("mixtral", "hybrid")])
def test_queued_schedules_choose_the_tokens_of_the_cpu_backend(family, schedule, tiny_model):
    from frontend.compile import compile_decode_loop

    directory = tiny_model(family, seed=1)
    expected = compile_decode_loop(directory, backend="cpu", max_context=512).generate(
        PROMPT, max_new_tokens=NEW_TOKENS, ignore_eos=True).output_ids
    decoder = device_decoder(directory, schedule=schedule)
    for _ in range(3):
        assert decoder.generate(PROMPT, max_new_tokens=NEW_TOKENS,
                                ignore_eos=True).output_ids == expected


RULES = {"suppress_tokens": list(range(40, 90)), "no_repeat_ngram_size": 2, "min_new_tokens": 9,
         "bad_words_ids": [[7, 8], [9]], "sequence_bias": {(3,): 1.5, (3, 4): -1.0, (4,): 0.5},
         "repetition_penalty": 1.1}


@pytest.mark.parametrize("temperature", [0.0, 1e-38])
def test_logits_processors_leave_the_tokens_of_the_cpu_backend(temperature, tiny_model):
    from frontend.compile import compile_decode_loop

    directory = tiny_model("llama", seed=1)
    options = {"max_new_tokens": NEW_TOKENS, "temperature": temperature, **RULES}
    expected = compile_decode_loop(directory, backend="cpu", max_context=512).generate(
        [PROMPT, PROMPT[:50]], **options)
    found = device_decoder(directory).generate([PROMPT, PROMPT[:50]], **options)
    assert [r.output_ids for r in found] == [r.output_ids for r in expected]


def test_logits_that_are_no_numbers_are_an_error(tiny_model):
    import transformers

    from event_tensor.errors import NotFiniteError
    from frontend.compile import compile_decode_loop

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model("qwen3"),
                                                              dtype=torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight[5, 5] = float("nan")
    decoder = compile_decode_loop(model, backend="cuda", max_context=64)
    with pytest.raises(NotFiniteError, match="lm_head.weight holds 1 NaN"):
        decoder.generate([1, 2, 3], max_new_tokens=4)


@pytest.mark.parametrize("policy", ["static", "hybrid", "dynamic", "dynamic_early"])
def test_routed_tiles_run_once_and_integers_are_exact(policy):
    from moe_kernel_gpu import check_routings

    from persistent_runtime.gpu.backend import CudaBackend

    for workers in (1, 3, None):
        check_routings(CudaBackend(), workers, policy, steps=200)


def test_leaving_a_stream_early_ends_the_launch(tiny_model):
    decoder = device_decoder(tiny_model("llama", seed=1))
    for _ in decoder.stream(PROMPT, max_new_tokens=150, ignore_eos=True):
        break
    assert len(decoder.generate(PROMPT, max_new_tokens=2, ignore_eos=True).output_ids) == 2


def test_a_missing_notify_ends_in_a_deadlock_error(tiny_model):
    from event_tensor.errors import DeadlockError
    from persistent_runtime.rows import layout

    decoder = device_decoder(tiny_model("llama", seed=1))
    encoded = decoder.kernel.schedule(decoder.bindings(1, 1, 1))
    row = next(r for r in encoded.rows if r[layout.NOTIFY_END] > r[layout.NOTIFY_BEGIN])
    row[layout.NOTIFY_END] = row[layout.NOTIFY_BEGIN]
    segment = decoder.kernel.segment(decoder.bindings(1, 1, 1), decoder._buffers)
    with pytest.raises(DeadlockError, match="made no progress.*waits on"):
        decoder.kernel.launch([segment], timeout_s=1.0).wait()


def test_more_workers_than_multiprocessors_are_refused(tiny_model):
    from event_tensor.errors import UserError

    with pytest.raises(UserError, match="multiprocessors"):
        device_decoder(tiny_model("llama", seed=1), workers=100_000)
