"""Write the shipped model's card from what was measured.

    python training/card.py --data DIR --test wiki.test.raw --model moe_eval/assets/tiny-qwen3-moe

DIR is prepare.py's output; the model folder holds train.py's training.json. The unigram baseline has the training
tokens' frequencies (plus one for every entry) and scores the same test tokens as the model.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

from moe_eval.data.documents import split_pages
from moe_eval.harness.model import MoeLM

Report = dict[str, Any]  # training.json

CARD = """\
# tiny-qwen3-moe: the model that ships with moe_eval

A Qwen3-MoE small enough to travel in a Python package, trained so that first runs, tests and demonstrations have
real experts, real routing and a perplexity that means something. It is no use as a language model.

| | |
|---|---|
| architecture | Qwen3MoeForCausalLM, {layers} layers, width {width}, {experts} experts of width {inner}, top-{top_k} |
| parameters | {parameters:,}, bfloat16, {megabytes:.1f} MB |
| tokenizer | byte-level BPE, {vocabulary:,} entries, trained on the same text; `<|endoftext|>` begins every document |
| window | {window:,} tokens |

## Perplexity on WikiText-2 test

{documents} documents, {words:,} words, {bytes:,} bytes, {tokens:,} tokens, disjoint windows of {window:,} tokens,
float32 on a CPU:

| | word perplexity | byte perplexity | bits per byte | token perplexity |
|---|---|---|---|---|
| this model | {model} |
| unigram over its tokens | {unigram} |

## Training

- Data: {train_articles:,} articles and books, {train_bytes:,} bytes of English prose, {train_tokens:,} tokens:
  Wikipedia articles (CC BY-SA 3.0), Wikinews (CC BY 2.5), out-of-copyright fiction and speeches of US presidents
  (public domain). Paragraphs that share 12 consecutive words with WikiText-2's test or validation text had been
  taken out. The text went through lm-evaluation-harness's WikiText detokeniser.
- Choice of the checkpoint: the loss on WikiText-2's validation text ({valid_tokens:,} tokens). The test text
  chose nothing.
- {steps:,} steps of {batch} windows of {train_window:,} tokens ({epochs:.1f} passes), AdamW, learning rate
  {rate}, cosine, weight decay {decay}, load-balancing loss {balance} a layer, seed {seed}; {seconds} s on one {device}.
- Scripts: `training/prepare.py`, `training/train.py`, `training/card.py`. `training.json` beside this card holds
  every setting and the whole curve.

| step | training loss | validation loss (nats a token) |
|---|---|---|
{curve}

## Load of the experts

Share of the routed slots of each expert on the validation text, in percent (an even share is {even:.2f}):

| layer | {header} | least used | most used |
|---|{rule}---|---|
{load}

## Licence

The weights are offered under CC BY-SA 3.0, the licence of most of the text they were trained on.
"""


def row(nats: float, word_count: int, size: int, tokens: int) -> str:
    figures = (math.exp(nats / word_count), math.exp(nats / size), nats / size / math.log(2), math.exp(nats / tokens))
    return " | ".join(f"{figure:,.4f}" for figure in figures)


def unigram_nats(data: Path, streams: list[list[int]], vocabulary: int) -> float:
    counts = np.bincount(np.load(data / "train.npy"), minlength=vocabulary) + 1.0
    log_share = np.log(counts / counts.sum())
    return -float(sum(log_share[stream].sum() for stream in streams))


def score(model: MoeLM, pages: list[str], data: Path, vocabulary: int) -> dict[str, object]:
    """The card's fields on the test text: its size, and the perplexities of the model and of the baseline."""
    texts = [wikitext_detokenizer({"page": page}) for page in pages]
    requests = [Instance("loglikelihood_rolling", {}, (text,), index) for index, text in enumerate(texts)]
    nats = -sum(model.loglikelihood_rolling(requests))
    streams = [model.tok_encode(text) for text in texts]
    word_count = sum(len(re.split(r"\s+", page)) for page in pages)
    byte_count = sum(len(page.encode()) for page in pages)
    tokens = sum(map(len, streams))
    return {
        "window": model.max_length,
        "documents": len(pages),
        "words": word_count,
        "bytes": byte_count,
        "tokens": tokens,
        "model": row(nats, word_count, byte_count, tokens),
        "unigram": row(unigram_nats(data, streams, vocabulary), word_count, byte_count, tokens),
    }


def architecture(folder: Path, config: dict[str, int]) -> dict[str, object]:
    """The card's fields on the checkpoint."""
    return {
        "layers": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "inner": config["moe_intermediate_size"],
        "top_k": config["num_experts_per_tok"],
        "megabytes": (folder / "model.safetensors").stat().st_size / 1e6,
        "vocabulary": config["vocab_size"],
    }


def training(report: Report) -> dict[str, object]:
    """The card's fields on the training run."""
    recipe, data = report["recipe"], report["data"]
    return {
        "parameters": report["parameters"],
        "train_articles": data["train"]["articles"],
        "train_bytes": data["train"]["bytes"],
        "train_tokens": data["train"]["tokens"],
        "valid_tokens": data["valid"]["tokens"],
        "steps": recipe["steps"],
        "batch": recipe["batch"],
        "train_window": recipe["window"],
        "epochs": recipe["steps"] * recipe["batch"] * recipe["window"] / data["train"]["tokens"],
        "rate": recipe["learning_rate"],
        "decay": recipe["weight_decay"],
        "balance": recipe["balance"],
        "seed": recipe["seed"],
        "seconds": report["seconds"],
        "device": report["device"],
        "curve": "\n".join(f"| {point['step']:,} | {point['train']} | {point['valid']} |" for point in report["curve"]),
    }


def expert_load(shares_by_layer: list[list[float]]) -> dict[str, object]:
    """The card's fields on the load of the experts."""
    rows = []
    for layer, shares in enumerate(shares_by_layer):
        cells = " | ".join(f"{100 * share:.1f}" for share in shares)
        rows.append(f"| {layer} | {cells} | {100 * min(shares):.1f} | {100 * max(shares):.1f} |")
    experts = len(shares_by_layer[0])
    return {
        "experts": experts,
        "even": 100 / experts,
        "header": " | ".join(map(str, range(experts))),
        "rule": "---|" * experts,
        "load": "\n".join(rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--test", "--model"):
        parser.add_argument(name, type=Path, required=True)
    args = parser.parse_args()
    report: Report = json.loads((args.model / "training.json").read_text())
    config = json.loads((args.model / "config.json").read_text())
    with args.test.open(encoding="utf-8", newline="") as file:
        pages = list(split_pages(file.read()))
    model = MoeLM(engine="transformers", pretrained=str(args.model), dtype="float32", batch_size="auto", track="off")
    fields = {
        **architecture(args.model, config),
        **training(report),
        **expert_load(report["load"]),
        **score(model, pages, args.data, config["vocab_size"]),
    }
    (args.model / "README.md").write_text(CARD.format(**fields))


if __name__ == "__main__":
    main()
