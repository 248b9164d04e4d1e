"""A small random model with a tokenizer of words and a chat template: its answers are words that
encode to the very tokens they came from."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from safetensors.torch import load_file, save_file
from tokenizers import models, pre_tokenizers

from benchmarks.make_model import model_config, write_model

SPECIAL = ["<|im_start|>", "<|im_end|>", "<unk>"]
WORDS = ["system", "user", "assistant", *(f"w{k}" for k in range(294))]

CHATML = """{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
# what Qwen3's does to reasoning: earlier turns are rendered in another way than the last one
FORGETFUL = CHATML.replace("message['content']",
                           "(message['content'] if loop.last else 'w0 ' + message['content'])")
REFUSING = "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system role') }}" \
           "{%- endif -%}" + CHATML


def write_chat_model(directory: Path, template: str | None = CHATML, *, seed: int = 3,
                     family: str = "qwen3", **config: object) -> Path:
    """float32; a greedy answer never ends by itself."""
    write_model(model_config(f"tiny-{family}", vocab_size=len(SPECIAL) + len(WORDS),
                             bos_token_id=None, eos_token_id=1, **config),
                directory, dtype="float32", seed=seed)
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"][:len(SPECIAL)] = 0  # never the most likely, for some other is above
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    vocab = {token: k for k, token in enumerate([*SPECIAL, *WORDS])}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>",
         "unk_token": "<unk>"}))
    if template is not None:
        (directory / "chat_template.jinja").write_text(template)
    return directory
