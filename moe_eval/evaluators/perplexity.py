"""The perplexity evaluator: token log-probabilities of one arm, and two arms compared token by token."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval import stats
from moe_eval.data.scoring_windows import WindowSet
from moe_eval.engines.base import Engine, WindowScores, unheard
from moe_eval.errors import UsageError

TOP_K = 64
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Scores:
    """What one arm said of every scored token of its windows, in order.

    Attributes:
        logprobs: natural logs, float32, shape (tokens,).
        lengths: scored tokens of every window, int64; `documents` is every window's document.
        top_ids, top_logprobs: the most probable tokens, int32 and float32, shape (tokens, k).
        digest: of the windows (see WindowSet).
    """

    logprobs: Array
    lengths: Array
    documents: Array
    top_ids: Array
    top_logprobs: Array
    digest: str

    def by_document(self) -> list[Array]:
        """The log-probabilities of every document."""
        starts = np.flatnonzero(np.diff(self.documents)) + 1
        ends = np.cumsum(self.lengths)[starts - 1]
        return list(np.split(self.logprobs, ends))

    def by_window(self) -> list[Array]:
        """The log-probabilities of every window."""
        return list(np.split(self.logprobs, np.cumsum(self.lengths)[:-1]))

    def save(self, file: Path) -> None:
        """Write them as an .npz file, which is on the disk when this returns."""
        with file.open("wb") as out:
            np.savez_compressed(out, **{**vars(self), "digest": np.array(self.digest)})
            out.flush()
            os.fsync(out.fileno())

    @classmethod
    def load(cls, file: Path) -> Scores:
        """Read what `save` wrote."""
        with np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in cls.__dataclass_fields__}
        return cls(**{**arrays, "digest": str(arrays["digest"])})


def measure(
    engine: Engine,
    windows: WindowSet,
    top_k: int = TOP_K,
    done: Callable[[int, WindowScores], None] = unheard,
    *,
    alone: bool = False,
) -> Scores:
    """Score the windows.

    Args:
        alone: one at a time, whatever batch the engine would make of them.

    Raises:
        UsageError: the windows are longer than the engine's.
    """
    if windows.input_len > engine.facts.max_length:
        raise UsageError(
            f"--input_len {windows.input_len} is longer than the window of {engine.facts.max_length} tokens; give at "
            f"most {engine.facts.max_length}."
        )
    scores = []
    for group in [[each] for each in windows.windows] if alone else [windows.windows]:
        scores += engine.score(group, top_k, done)
    return Scores(
        logprobs=np.concatenate([each.logprobs for each in scores]),
        lengths=np.array([len(each.logprobs) for each in scores], dtype=np.int64),
        documents=np.array(windows.documents, dtype=np.int64),
        top_ids=np.concatenate([each.top_ids for each in scores]).astype(np.int32),
        top_logprobs=np.concatenate([each.top_logprobs for each in scores]),
        digest=windows.digest,
    )


def figures(scores: Scores, windows: WindowSet) -> dict[str, Any]:
    """One arm's own figures.

    Returns:
        perplexity is exp(mean negative log-likelihood of the scored tokens); per_chunk_ppls the same for every window.
        word_ppl, byte_ppl and bits_per_byte are lm-evaluation-harness's, over the documents that are covered whole and
        None where there is none.
    """
    whole = [each for index, each in zip(dict.fromkeys(windows.documents), scores.by_document(), strict=True)
             if index in windows.word_counts]  # fmt: skip
    words, size = sum(windows.word_counts.values()), sum(windows.byte_counts.values())
    byte_ppl = stats.perplexity(whole, size) if whole else None
    return {
        "perplexity": stats.perplexity([scores.logprobs]),
        "per_chunk_ppls": [stats.perplexity([each]) for each in scores.by_window()],
        "tokens": len(scores.logprobs),
        "documents": len(set(windows.documents)),
        "whole_documents": len(whole),
        "words": words,
        "bytes": size,
        "word_ppl": stats.perplexity(whole, words) if whole else None,
        "byte_ppl": byte_ppl,
        "bits_per_byte": None if byte_ppl is None else float(np.log2(byte_ppl)),
    }


def compare(reference: Scores, other: Scores, noise: float | None) -> dict[str, Any]:
    """Two arms on the same windows.

    Args:
        noise: |ln ratio| of two runs of the reference that differ in batch size alone; None where not measured.

    Returns:
        ln_ppl_ratio (value, error, low, high; None with fewer than two documents, and why), the divergence, and `flag`,
        a sentence where the result is implausible.

    Raises:
        UsageError: they did not score the same windows.
    """
    if reference.digest != other.digest:
        raise UsageError("The two arms did not score the same windows; use the same data set, tokenizer and lengths.")
    found: dict[str, Any] = {"ln_ppl_ratio": None, "no_interval": None, "flag": None}
    try:
        ratio = stats.ln_ratio(reference.by_document(), other.by_document())
    except UsageError as error:
        found["no_interval"] = str(error)
    else:
        found |= {"ln_ppl_ratio": asdict(ratio), "flag": stats.implausible_gain(ratio, noise)}
    divergence = stats.divergence(reference.top_ids, reference.top_logprobs, other.top_ids, other.top_logprobs)
    return {**found, "divergence": asdict(divergence)}
