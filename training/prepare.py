"""Turn the training prose into a tokenizer and token files for train.py.

    python training/prepare.py --data DIR --valid wiki.valid.raw --out DIR

DIR holds NAME.txt.gz (one paragraph a line) and NAME.articles.tsv.gz (columns first_line, lines and title).
Articles get the form in which lm-evaluation-harness scores WikiText pages: a ``= Title =`` line, a blank line, the
paragraphs, all through the harness's own detokeniser.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from moe_eval.data.documents import split_pages

SOURCES = ("wikipedia-long", "wikipedia-short", "wikinews", "books-fiction", "speeches")
VOCABULARY = 4096
END = "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
MODEL_WINDOW = 1024


def articles(data: Path, name: str) -> Iterator[str]:
    """Yield every article of a source in the harness's detokenised form."""
    with gzip.open(data / f"{name}.txt.gz", "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    with gzip.open(data / f"{name}.articles.tsv.gz", "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    for row in rows:
        first, count = int(row["first_line"]) - 1, int(row["lines"])
        page = f"\n= {row['title']} =\n\n" + "\n".join(lines[first : first + count]) + "\n"
        yield wikitext_detokenizer({"page": page})


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE in which every byte is an entry, so that any text can be encoded."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All texts as one uint16 stream, each begun by the end-of-text token (the prefix the harness scores from)."""
    end = tokenizer.token_to_id(END)
    stream = io.BytesIO()
    for encoding in tokenizer.encode_batch(texts):
        stream.write(np.asarray([end, *encoding.ids], dtype=np.uint16).tobytes())
    return np.frombuffer(stream.getvalue(), dtype=np.uint16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--valid", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    texts = [text for name in SOURCES for text in articles(args.data, name)]
    tokenizer = train_tokenizer(texts)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, model_max_length=MODEL_WINDOW
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(args.out / "tokenizer")
    # the class name that Transformers 4 knows too
    file = args.out / "tokenizer" / "tokenizer_config.json"
    settings = {**json.loads(file.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("backend", None)
    file.write_text(json.dumps(settings, indent=2) + "\n")

    valid = [wikitext_detokenizer({"page": page}) for page in split_pages(args.valid.read_text(encoding="utf-8"))]
    counts = {}
    for name, part in (("train", texts), ("valid", valid)):
        tokens = encode(tokenizer, part)
        np.save(args.out / f"{name}.npy", tokens)
        counts[name] = {
            "articles": len(part),
            "bytes": sum(len(text.encode()) for text in part),
            "tokens": len(tokens),
        }
    (args.out / "data.json").write_text(json.dumps(counts, indent=1) + "\n")
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
