"""Train the small language models that ship in `frontend/demo` and `frontend/demo_moe`.

The text is The Jargon File, version 4.4.7, which is in the public domain; Debian packages it as
`dict-jargon`. The first is a Qwen3 decoder of about 4.7 million parameters, the second a mixture
of experts of 1.4 million; a CPU trains both:

    apt-get download dict-jargon && dpkg -x dict-jargon_*.deb jargon
    python examples/train_demo_model.py --text jargon/usr/share/dictd/jargon.dict.dz \
        --output frontend/demo
    python examples/train_demo_model.py --text jargon/usr/share/dictd/jargon.dict.dz \
        --recipe moe --output frontend/demo_moe
"""

from __future__ import annotations

import argparse
import copy
import gzip
import math
import os
import random
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

END_OF_TEXT = "<|endoftext|>"
CONTEXT = 2048  # positions the saved model accepts, in tokens
ROWS_PER_STEP, TOKENS_PER_ROW = 8, 256
WARMUP_STEPS = 200
SAVE_MINUTES = 8.0

# Quotes and dashes become ASCII, so that no glyph of the streamed text spans two tokens.
PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "´": "'", "—": "--", "−": "-",
                       "\xa0": " ", "\xad": ""})
DRAWING = re.compile(r"[─│├┼┤┌┬┐└┴┘□]|\S {3,}\S|\|_|_-_")
WORD_CLASS = r"(?:(?:n|v|vt|vi|adj|adv|interj|excl|imp|quant|prep|pref|suff|obs)\.[,;]? *)*"
SENSE = re.compile(rf"^(\d+[a-z]?\. )?{WORD_CLASS}(?:\[[^]]*\] *)?{WORD_CLASS}")
CARTOON = re.compile(r"\(The (next|previous|first|second|last) cartoon|\[\d\d-\d\d-\d\d")


def clean_paragraph(lines: list[str]) -> str:
    """One paragraph on one line, without link braces, note brackets and word classes.

    Gives the empty string for what is no prose: drawings, tables, cartoon references and the
    single letters which divide the alphabet.
    """
    if any(DRAWING.search(line.strip()) for line in lines):
        return ""
    paragraph = re.sub(r"\{\s*([^{}]*?)\s*\}", r"\1", " ".join(line.strip() for line in lines))
    # The source breaks lines just inside quotes and brackets: `“ zorch cow”`.
    paragraph = re.sub(r"(?<=[“‘(]) +| +(?=[”),;])", "", paragraph).translate(PLAIN)
    paragraph = SENSE.sub(lambda match: match[1] or "", " ".join(paragraph.split()))
    return "" if len(paragraph) < 4 or CARTOON.match(paragraph) else paragraph


def dictionary_entries(text: str) -> list[str]:
    """`headword: definition` for each entry of a dictd text, in its order.

    A headword stands in column 0 above a line, indented by one space, of pronunciation and word
    class, which is dropped; the definition follows in paragraphs indented by four.
    """
    entries: list[tuple[str, list[str]]] = []
    for block in re.split(r"\n(?:[ \t]*\n)+", text):
        head, *rest = block.strip("\n").split("\n")
        if head.startswith(" "):
            if entries:
                entries[-1][1].append(clean_paragraph([head, *rest]))
        elif head and not any(line and not line.startswith(" ") for line in rest):
            entries.append((head.translate(PLAIN), []))
        elif head.startswith("This document (the Jargon File)"):
            entries.append(("The Jargon File", [clean_paragraph([head, *rest])]))
    bodies = ((head, "\n".join(filter(None, paragraphs))) for head, paragraphs in entries)
    return [f"{head}: {body}" for head, body in bodies if body and "00-database" not in head]


def read_documents(path: Path) -> list[str]:
    """The entries of a dictd text, or the paragraphs of any other; `.dict.dz` is gzip."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".dz" else data).decode("utf-8")
    if "00-database" in text[:200]:
        return dictionary_entries(text)
    paragraphs = (clean_paragraph(block.split("\n")) for block in re.split(r"\n\s*\n", text))
    return [paragraph for paragraph in paragraphs if paragraph]


def train_tokenizer(documents: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT,
        model_max_length=CONTEXT, clean_up_tokenization_spaces=False)


def common_fields(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT,
            "tie_word_embeddings": True, "use_sliding_window": False,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}


def build_dense(tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(Qwen3Config(
        hidden_size=256, intermediate_size=704, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, **common_fields(tokenizer)))


def build_moe(tokenizer: PreTrainedTokenizerFast) -> Qwen3MoeForCausalLM:
    """The first layer is dense, so that the model has both kinds."""
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        num_experts=8, num_experts_per_tok=2, moe_intermediate_size=96, norm_topk_prob=True,
        mlp_only_layers=[0], router_aux_loss_coef=0.01, **common_fields(tokenizer)))
    model.set_experts_implementation("grouped_mm")
    return model


@dataclass(frozen=True, slots=True)
class Recipe:
    build: Callable[[PreTrainedTokenizerFast], PreTrainedModel]
    vocab_size: int
    peak_rate: float
    steps: int


RECIPES = {"dense": Recipe(build_dense, 4096, 1.5e-3, 6500),
           "moe": Recipe(build_moe, 2048, 3e-3, 3200)}


def training_rows(documents: list[list[int]], rng: random.Random) -> Iterator[list[int]]:
    """Endless rows of TOKENS_PER_ROW tokens, cut from the documents in an order new each epoch.

    Half of the rows start where a document does, so that the model has seen a prompt at position
    0; the others start anywhere, so that it sees the later parts of long documents as often.
    """
    while True:
        starts, stream = [], []
        for document in rng.sample(documents, len(documents)):
            starts.append(len(stream))
            stream += document
        last = len(stream) - TOKENS_PER_ROW
        starts = [start for start in starts if start <= last]
        for number in range(len(stream) // TOKENS_PER_ROW):
            start = rng.choice(starts) if number % 2 else rng.randint(0, last)
            yield stream[start : start + TOKENS_PER_ROW]


def next_token_loss(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy in nats; tokens: [rows, row_tokens] int64.

    While a mixture of experts trains, plus its loss for experts of unequal load.
    """
    balanced = model.training and hasattr(model.config, "router_aux_loss_coef")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(input_ids=tokens, use_cache=False,
                    **({"output_router_logits": True} if balanced else {}))
    logits = out.logits  # [rows, row_tokens, vocab]
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1),
                                             tokens[:, 1:].flatten())
    return loss + model.config.router_aux_loss_coef * out.aux_loss if balanced else loss


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, documents: list[list[int]]) -> float:
    """Mean cross entropy per predicted token, in nats, each document read on its own."""
    model.eval()
    predicted = [len(document[:CONTEXT]) - 1 for document in documents]
    losses = [next_token_loss(model, torch.tensor([document[:CONTEXT]])) for document in documents]
    model.train()
    pairs = zip(losses, predicted, strict=True)
    return sum(float(loss) * count for loss, count in pairs) / sum(predicted)


@torch.no_grad()
def expert_shares(model: PreTrainedModel, documents: list[list[int]]) -> list[list[float]]:
    """Per sparse layer, the share of all choices that each expert got; empty for a dense model."""
    if not hasattr(model.config, "num_experts_per_tok"):
        return []
    chosen: list[torch.Tensor] = []  # per document: [sparse layers, experts]
    for document in documents:
        logits = model(input_ids=torch.tensor([document[:CONTEXT]]), use_cache=False,
                       output_router_logits=True).router_logits
        ids = torch.stack([layer.topk(model.config.num_experts_per_tok).indices
                           for layer in logits])  # [sparse layers, tokens, top_k]
        chosen.append(torch.nn.functional.one_hot(ids, model.config.num_experts).sum((1, 2)))
    counts = torch.stack(chosen).sum(0)
    return (counts / counts.sum(1, keepdim=True)).tolist()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine from the peak down to a twentieth of it."""
    if step < WARMUP_STEPS:
        return peak * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return peak * (0.05 + 0.475 * (1 + math.cos(math.pi * progress)))


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write the model in bf16; readers of `output` never see a file half written."""
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output) as staging:
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        for path in sorted(Path(staging).iterdir()):
            path.chmod(0o644)
            os.replace(path, output / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a demo model on The Jargon File.")
    parser.add_argument("--text", type=Path, required=True, help="dictd .dict.dz or plain text")
    parser.add_argument("--output", type=Path, required=True, help="folder of the saved model")
    parser.add_argument("--recipe", choices=RECIPES, default="dense")
    parser.add_argument("--steps", type=int, help="by default those of the recipe")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    recipe = RECIPES[args.recipe]
    steps = args.steps or recipe.steps

    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    rng = random.Random(args.seed)
    texts = read_documents(args.text)
    rng.shuffle(texts)
    held_out_count = max(1, len(texts) // 50)
    tokenizer = train_tokenizer(texts[held_out_count:], recipe.vocab_size)
    documents = [tokenizer.encode(text) + [tokenizer.eos_token_id] for text in texts]
    held_out, training = documents[:held_out_count], documents[held_out_count:]
    model = recipe.build(tokenizer).train()
    print(f"{len(training)} documents, {sum(map(len, training))} tokens to train on; "
          f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)

    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.1},
              {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    rows = training_rows(training, rng)
    started = saved = time.monotonic()
    recent: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, recipe.peak_rate)
        loss = next_token_loss(model, torch.tensor([next(rows) for _ in range(ROWS_PER_STEP)]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            minutes = (time.monotonic() - started) / 60
            print(f"step {step + 1}/{steps}  loss {sum(recent) / len(recent):.3f}  "
                  f"{minutes:.1f} min", flush=True)
            recent.clear()
        if time.monotonic() - saved > 60 * SAVE_MINUTES:
            save(model, tokenizer, args.output)
            saved = time.monotonic()
            print(f"saved; held-out loss {held_out_loss(model, held_out):.3f}", flush=True)
    save(model, tokenizer, args.output)
    print(f"finished; held-out loss {held_out_loss(model, held_out):.3f}", flush=True)
    for layer, shares in enumerate(expert_shares(model, held_out)):
        print(f"sparse layer {layer}: experts chosen {', '.join(f'{s:.1%}' for s in shares)}")


if __name__ == "__main__":
    main()
