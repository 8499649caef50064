"""A data set as the fixed windows that every arm of a perplexity comparison scores."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moe_eval.checkpoint import hub
from moe_eval.data.window import Window
from moe_eval.errors import UsageError

DATASETS = ("wikitext", "wikitext_local", "moe_sample")
_HUB = ("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1")


@dataclass(frozen=True)
class Chunks:
    """Windows of at most `input_len` scored tokens, cut within documents.

    Attributes:
        documents: the index of every window's document, not decreasing.
        words, bytes: of every document that is covered whole, by index, counted as lm-evaluation-harness's wikitext
            task counts them; the last document may be cut off and is then missing.
        digest: 16 hexadecimal digits of SHA-256 over the token ids, windows and documents.
        total: how many windows the whole data set has.
    """

    windows: tuple[Window, ...]
    documents: tuple[int, ...]
    words: dict[int, int]
    bytes: dict[int, int]
    digest: str
    input_len: int
    total: int


def pages(dataset: str) -> list[str]:
    """The documents of a data set as they are stored.

    Raises:
        UsageError: there is no such data set, or it cannot be read here.
    """
    from moe_eval.data import documents

    if dataset not in DATASETS:
        raise UsageError(f"There is no data set {dataset!r}; choose {', '.join(DATASETS)}.")
    if dataset == "wikitext":
        import datasets

        try:
            found = datasets.load_dataset(*_HUB, split="test")
        except Exception as error:  # datasets raises its own errors and those of the hub's client
            if hub.unreachable(error):
                raise UsageError(
                    "The data set wikitext is not on this machine and the hub cannot be reached; set "
                    f"{documents.VARIABLE} to a raw file and name wikitext_local, or name moe_sample, which ships with "
                    "moe_eval (as --dataset of moe-eval, as prompts in the metadata of moe_latency and moe_kernels)."
                ) from error
            raise
        return [str(page) for page in found["page"]]
    load = documents.wikitext_local if dataset == "wikitext_local" else documents.moe_sample
    return [str(page) for page in load()["test"]["page"]]


def check(input_len: int, num_chunks: int) -> None:
    """Refuse numbers that make no window.

    Raises:
        UsageError: with both.
    """
    if input_len < 1 or num_chunks < 0:
        raise UsageError(f"--input_len {input_len} --num_chunks {num_chunks} make no windows; give numbers above 0.")


def cut(
    documents: Sequence[str], encode: Callable[[str], list[int]], prefix: int, input_len: int, num_chunks: int
) -> Chunks:
    """Cut documents into windows in the harness's disjoint form: every token of a document is scored once.

    Args:
        documents: as stored; scored as the harness's wikitext detokeniser makes them.
        prefix: the token that conditions the first token of a document.
        input_len: most scored tokens of a window, and most tokens that it reads.
        num_chunks: at most this many windows, from the start; 0 for all.

    Raises:
        UsageError: numbers or documents that make no window.
    """
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    check(input_len, num_chunks)
    windows: list[Window] = []
    owners: list[int] = []
    for index, page in enumerate(documents):
        tokens = encode(wikitext_detokenizer({"page": page}))
        for context, scored in map(
            make_disjoint_window,
            get_rolling_token_windows(token_list=tokens, prefix_token=prefix, max_seq_len=input_len, context_len=1),
        ):
            windows.append(Window(tuple(context), tuple(scored)))
            owners.append(index)
    total = len(windows)
    if not total:
        raise UsageError("The data set holds no text to score; name another with --dataset.")
    kept = min(total, num_chunks or total)
    whole = [index for index in dict.fromkeys(owners[:kept]) if index not in owners[kept:]]
    digest = hashlib.sha256()
    for owner, window in zip(owners[:kept], windows[:kept], strict=True):
        digest.update(f"{owner}:{window.context}:{window.continuation};".encode())
    return Chunks(
        windows=tuple(windows[:kept]),
        documents=tuple(owners[:kept]),
        words={index: len(re.split(r"\s+", documents[index])) for index in whole},
        bytes={index: len(documents[index].encode()) for index in whole},
        digest=digest.hexdigest()[:16],
        input_len=input_len,
        total=total,
    )
