"""Talk to a model on your own machine: every token is printed the moment the kernel has made it.

    python examples/low_latency_chat.py MODEL --system "Be brief." --temperature 0.7
    echo hacker | python examples/low_latency_chat.py demo

An empty line or Ctrl-D ends it, Ctrl-C an answer; the KV cache is kept from turn to turn.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress

from event_tensor import compile_decode_loop
from event_tensor.errors import EventTensorError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo", help="a directory, a Hub id, or demo")
    parser.add_argument("--system", help="the system prompt")
    parser.add_argument("--temperature", type=float, help="0: always the likeliest token")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    options = parser.parse_args()

    conversation = compile_decode_loop(options.model).chat(system=options.system)
    while True:
        print("> ", end="", flush=True)
        message = sys.stdin.readline().strip()
        if not message:
            break
        try:
            stream = conversation.send(message, max_new_tokens=options.max_new_tokens,
                                       temperature=options.temperature)
            for token in stream:
                print(token.text, end="", flush=True)
        except EventTensorError as error:  # of the message; the conversation goes on
            print(f"error: {error}")
            continue
        except KeyboardInterrupt:  # what was seen of the answer is in the conversation
            stream.close()
        answer = conversation.last
        if answer and answer.tpot_ms:
            print(f"\n[TTFT {answer.ttft_ms:.1f} ms, TPOT {answer.tpot_ms['p50']:.2f} ms, "
                  f"{answer.tokens_per_second:.0f} tok/s, {answer.prefilled_tokens} tokens read, "
                  f"context {conversation.context_tokens}]")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # at the prompt
        main()
