"""A model that is a table: what follows a token depends on that token alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

from moe_eval.data import scoring_windows
from moe_eval.data.scoring_windows import WindowSet
from moe_eval.data.window import Window
from moe_eval.engines.base import PositionIds, WindowScores, unheard
from moe_eval.evaluators import quality
from moe_eval.evaluators.quality import Scores

Array = npt.NDArray[Any]
ALPHABET = " =\nabcdefgh,."
PREFIX = len(ALPHABET)
VOCABULARY = PREFIX + 1
PAGES = [f" = {letter} = \n " + f"a {letter} , b . \n {letter}c d " * (3 + at) for at, letter in enumerate("defgh")]


class Table:
    """An engine with a row of log-probabilities for every token."""

    def __init__(
        self, distance: float = 0.0, max_length: int = 64, better: float = 0.0, *, scores_ids: bool = True
    ) -> None:
        logits = np.random.default_rng(0).normal(0, 1.5, (VOCABULARY, VOCABULARY))
        logits = logits + np.random.default_rng(1).normal(0, distance, logits.shape)
        self.rows = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) + better
        self.facts = SimpleNamespace(max_length=max_length, scores_ids=scores_ids)
        self.top_ks: list[int] = []

    def score(
        self,
        windows: Sequence[Window],
        top_k: int = 0,
        done: Callable[[int, WindowScores], None] = unheard,
        ids: Sequence[PositionIds] | None = None,
    ) -> list[WindowScores]:
        self.top_ks.append(top_k)
        assert ids is None or self.facts.scores_ids
        of_windows = ids or [np.empty((len(window.continuation), 0), np.int64) for window in windows]
        scores = [
            self._scores(window, min(top_k, VOCABULARY), further)
            for window, further in zip(windows, of_windows, strict=True)
        ]
        for index in reversed(range(len(scores))):
            done(index, scores[index])
        return scores

    def _scores(self, window: Window, k: int, further: PositionIds) -> WindowScores:
        rows = self.rows[list(window.inputs)][-len(window.continuation) :]
        ids = np.argsort(-rows, axis=1, kind="stable")[:, :k]
        continuation = np.array(window.continuation)
        return WindowScores(
            logprobs=rows[np.arange(len(continuation)), continuation].astype(np.float32),
            greedy=rows.argmax(1) == continuation,
            top_ids=ids.astype(np.int64),
            top_logprobs=np.take_along_axis(rows, ids, 1).astype(np.float32),
            of_ids=np.take_along_axis(rows, further.astype(np.int64), 1).astype(np.float32),
        )

    def of_page(self, page: str) -> Array:
        """Every token's log-probability, without windows."""
        tokens = encode(wikitext_detokenizer({"page": page}))
        return self.rows[[PREFIX, *tokens[:-1]], tokens]


def encode(text: str) -> list[int]:
    return [ALPHABET.index(letter) for letter in text]


def cut(input_len: int = 16, num_chunks: int = 0) -> WindowSet:
    return scoring_windows.cut(PAGES, encode, PREFIX, input_len, num_chunks)


def measure(table: Table, windows: WindowSet, top_k: int = 5, reference: Scores | None = None) -> Scores:
    return quality.measure(table, windows, top_k, reference=reference)  # type: ignore[arg-type]
