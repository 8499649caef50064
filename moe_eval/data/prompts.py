"""The workload of a speed comparison, from a data set's text or from a seed."""

from __future__ import annotations

import os
from typing import Any

from moe_eval.data import documents, scoring_windows, workload
from moe_eval.data.workload import Shape, Workload
from moe_eval.errors import UsageError, mended

SOURCES = (*scoring_windows.DATASETS, "random")


def default_source() -> str:
    """The standard wikitext documents: of the raw file that is named by the variable, else of the hub."""
    return "wikitext_local" if os.environ.get(documents.VARIABLE) else "wikitext"


def make_workload(dataset: str, seed: int, shapes: tuple[Shape, ...], tokenizer: Any, vocabulary: int) -> Workload:
    """The prompts of these shapes.

    Args:
        dataset: one of SOURCES. Text makes routing natural.
        seed: of `random`.
        tokenizer: of Transformers.
        vocabulary: the smallest of the arms that run the workload.

    Raises:
        UsageError: the data set cannot be read here, or is too short for the largest batch.
    """
    if dataset == "random":
        return workload.from_seed(seed, shapes, vocabulary, set(tokenizer.all_special_ids))
    if dataset not in SOURCES:
        fix = mended(dataset, SOURCES, f"Give one of {', '.join(SOURCES)}.")
        raise UsageError(f"There is no data set {dataset!r}. {fix}")
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    return workload.from_text(
        [wikitext_detokenizer({"page": document}) for document in scoring_windows.read_documents(dataset)],
        lambda text: tokenizer.encode(text, add_special_tokens=False, verbose=False),
        shapes,
        vocabulary,
        f"{dataset}, tokenizer {tokenizer.name_or_path}, slices of {shapes[0].input_len} tokens",
    )
