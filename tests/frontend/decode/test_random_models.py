"""Random small models choose the tokens of transformers, in whatever schedule, on any workers."""

import pytest

pytest.importorskip("transformers")

import torch
import transformers
from random_models import random_model, unlikely_token

from frontend.compile import compile_decode_loop


@pytest.mark.parametrize("seed", range(36))
def test_a_random_model_chooses_the_tokens_of_transformers(seed, tiny_model):
    case = random_model(seed)
    directory = tiny_model(case.family, seed=seed, **case.fields)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager",
        experts_implementation="eager")
    decoder = compile_decode_loop(directory, workers=case.workers, schedule=case.schedule,
                                  max_context=200)
    for prompt in case.prompts:
        result = decoder.generate(prompt, max_new_tokens=12, ignore_eos=True)
        assert len(result.output_ids) == 12
        assert unlikely_token(model, prompt, result.output_ids) is None, case
    together = decoder.generate(case.prompts, max_new_tokens=12, ignore_eos=True)
    for prompt, result in zip(case.prompts, together, strict=True):
        assert unlikely_token(model, prompt, result.output_ids) is None, case
