"""The megakernel in place of transformers' decode loop: same call, same tokens, one launch.

    python examples/transformers_bridge.py MODEL --prompt "hacker:" --new-tokens 60
"""

from __future__ import annotations

import argparse
from threading import Thread

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer, TextStreamer

from event_tensor import compile_decode_loop
from frontend.decode.bridge import generate_with, stream_into
from frontend.model_files.resolve import resolve_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo", help="a directory, a Hub id, or demo")
    parser.add_argument("--prompt", default="hacker:")
    parser.add_argument("--new-tokens", type=int, default=40)
    options = parser.parse_args()

    directory = resolve_model(options.model)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    decoder = compile_decode_loop(model)  # reads the very weights that the model holds
    inputs = tokenizer(options.prompt, return_tensors="pt")
    limits = {"max_new_tokens": options.new_tokens, "do_sample": False}

    theirs = model.generate(**inputs, **limits)
    streamer = TextStreamer(tokenizer, skip_prompt=True)  # prints while the kernel runs
    ours = model.generate(**inputs, **limits, custom_generate=generate_with(decoder, streamer))
    print(f"same tokens: {torch.equal(ours, theirs)}")

    # Without a transformers model: any of its streamers on a stream of ours.
    words = TextIteratorStreamer(tokenizer, skip_prompt=True)
    Thread(target=stream_into, args=(words, decoder, inputs.input_ids[0].tolist()),
           kwargs={"max_new_tokens": 10}).start()
    print("".join(words))


if __name__ == "__main__":
    main()
