"""The fixed windows of a data set that every arm of a quality comparison scores."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from moe_eval.checkpoint import hub
from moe_eval.data import documents as raw_files
from moe_eval.data.window import Window, rolling_windows
from moe_eval.errors import UsageError, mended
from moe_eval.frozen import frozen

DATASETS = ("wikitext", "wikitext_local", "moe_sample")
_HUB = ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1")


@frozen
class WindowSet:
    """Windows of at most `input_len` scored tokens, cut within documents.

    Attributes:
        documents: the index of every window's document, not decreasing.
        word_counts, byte_counts: of every whole document, by its index, counted as in lm-evaluation-harness's wikitext
            task. A document of which windows were left out has none.
        digest: 16 hexadecimal digits of SHA-256 over the token ids, windows and documents.
        total: the number of windows of the whole data set.
    """

    windows: tuple[Window, ...]
    documents: tuple[int, ...]
    word_counts: dict[int, int]
    byte_counts: dict[int, int]
    digest: str
    input_len: int
    total: int


def read_documents(dataset: str) -> list[str]:
    """The documents of a data set as they are stored.

    Raises:
        UsageError: there is no such data set, or it cannot be read here.
    """
    if dataset not in DATASETS:
        fix = mended(dataset, DATASETS, f"Give one of {', '.join(DATASETS)}.")
        raise UsageError(f"There is no data set {dataset!r}. {fix}")
    if dataset == "wikitext":
        import datasets

        try:
            split = datasets.load_dataset(*_HUB, split="test")
        except Exception as error:  # datasets raises its own errors and those of the hub's client
            if hub.unreachable(error):
                raise UsageError(
                    "The data set wikitext is not on this machine and the hub cannot be reached. Set "
                    f"{raw_files.VARIABLE} to a raw file and give wikitext_local, or give moe_sample, which ships with "
                    "moe_eval (as --dataset of moe-eval, as prompts in the metadata of moe_latency and moe_kernels)."
                ) from error
            raise
    else:
        load = raw_files.wikitext_local if dataset == "wikitext_local" else raw_files.moe_sample
        split = load()["test"]
    return [str(page) for page in split["page"]]


def check(input_len: int, num_chunks: int) -> None:
    """Refuse numbers that make no window.

    Raises:
        UsageError: with both numbers.
    """
    if input_len < 1 or num_chunks < 0:
        raise UsageError(f"--input_len {input_len} --num_chunks {num_chunks} make no windows. Give numbers above 0.")


def cut(
    documents: Sequence[str], encode: Callable[[str], list[int]], prefix: int, input_len: int, num_chunks: int
) -> WindowSet:
    """Cut documents into windows in the harness's disjoint form: every token of a document is scored once.

    Args:
        documents: as stored. The harness's wikitext detokeniser makes the scored text.
        prefix: the token that conditions the first token of a document.
        input_len: the maximum of a window's scored tokens, and of the tokens that it reads.
        num_chunks: the maximum of windows. They are spread evenly over all documents, since documents are what an
            interval counts. 0 for all.

    Raises:
        UsageError: numbers or documents that make no window.
    """
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    check(input_len, num_chunks)
    numbered = [
        (index, window)
        for index, document in enumerate(documents)
        for window in rolling_windows(encode(wikitext_detokenizer({"page": document})), prefix, input_len)
    ]
    if not numbered:
        raise UsageError("The data set holds no text to score. Give another with --dataset.")
    count = min(len(numbered), num_chunks or len(numbered))
    # the middle window of every one of `count` equal parts
    scored = [numbered[(2 * part + 1) * len(numbered) // (2 * count)] for part in range(count)]
    sizes, scored_sizes = (Counter(index for index, _ in windows) for windows in (numbered, scored))
    whole = [index for index, size in scored_sizes.items() if size == sizes[index]]
    return WindowSet(
        windows=tuple(window for _, window in scored),
        documents=tuple(index for index, _ in scored),
        word_counts={index: len(re.split(r"\s+", documents[index])) for index in whole},
        byte_counts={index: len(documents[index].encode()) for index in whole},
        digest=_digest(scored),
        input_len=input_len,
        total=len(numbered),
    )


def _digest(numbered: Iterable[tuple[int, Window]]) -> str:
    digest = hashlib.sha256()
    for index, window in numbered:
        digest.update(f"{index}:{window.context}:{window.continuation};".encode())
    return digest.hexdigest()[:16]
