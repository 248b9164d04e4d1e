"""A model family of your own in one file: gates by GELU, norms by 1 + w, two ropes in turn.

    python examples/own_family.py MODEL --prompt-ids 5,91,17

MODEL is a directory whose config.json says `"model_type": "two_ropes"`. Importing a file like this
one is all that it takes to make such models compile.
"""

import argparse
from dataclasses import replace

from frontend.compile import compile_decode_loop
from frontend.config.activation import any_activation
from frontend.config.decoder_config import DecoderConfig
from frontend.config.rope import RopeConfig, Ropes
from frontend.families import Family, register_family
from frontend.families.dense_block import dense_block
from frontend.model_files.json_fields import Fields


def two_ropes(fields: Fields, num_layers: int) -> Ropes:
    """Layers 0, 2, … rotate by rope_local_theta, layers 1, 3, … by rope_theta."""
    in_turn = [RopeConfig("default", fields.number(name))
               for name in ("rope_local_theta", "rope_theta")]
    return tuple(in_turn[layer % 2] for layer in range(num_layers))


def refine(fields: Fields, config: DecoderConfig) -> DecoderConfig:
    """Norms multiply by 1 + w, embeddings are scaled up: no field of config.json says so."""
    return replace(config, norm_offset=1.0, embedding_multiplier=config.hidden_size**0.5)


register_family(Family(
    "two_ropes", ("TwoRopesForCausalLM", "TwoRopesModel"), dense_block,
    {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "rope_local_theta": 10_000.0,
     "rope_theta": 1_000_000.0},
    activation=any_activation, ropes=two_ropes, refine=refine))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--prompt-ids", default="5,91,17")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    options = parser.parse_args()
    decoder = compile_decode_loop(options.model, max_context=256)
    prompt = [int(token) for token in options.prompt_ids.split(",")]
    generation = decoder.generate(prompt, max_new_tokens=options.max_new_tokens, ignore_eos=True)
    print(*generation.output_ids, sep=",")


if __name__ == "__main__":
    main()
