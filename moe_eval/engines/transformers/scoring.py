"""Scores windows with a model of Transformers: in batches, and a context that several windows share once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
import torch

from moe_eval.data.window import Window
from moe_eval.engines.base import PositionIds, WindowScores
from moe_eval.engines.head import Head
from moe_eval.engines.transformers import shared_context
from moe_eval.engines.transformers.batching import Batches
from moe_eval.engines.transformers.rows import Arriving, Rows, sent
from moe_eval.engines.transformers.threads import Threads
from moe_eval.frozen import frozen


@dataclass
class Scoring:
    """A model, its head and how much is scored at once."""

    model: Any
    head: Head
    batches: Batches
    threads: Threads

    def score(
        self,
        windows: Sequence[Window],
        top_k: int,
        done: Callable[[int, WindowScores], None],
        ids: Sequence[PositionIds] | None,
    ) -> list[WindowScores]:
        """The scores of windows, as base.Engine.score."""
        # a GPU works on the next batch while the scores of the last one arrive
        job = _Job(windows, top_k, done, ids, most_arriving=int(self.model.device.type == "cuda"))
        questions, whole = shared_context.split(windows)
        if questions and not self.continues:
            questions, whole = [], list(range(len(windows)))
        with self.threads.bound():
            try:
                whole += self._run_questions(job, questions)
                self._run_whole(job, whole)
            finally:
                job.take(most_left=0)
        return [job.scores[index] for index in range(len(windows))]

    @cached_property
    def continues(self) -> bool:
        """Whether the model reads on from keys and values."""
        return shared_context.continues(self.model)

    def _run_questions(self, job: _Job, questions: list[list[int]]) -> list[int]:
        """Score windows by context. Returns those that do not fit into memory with keys and values."""
        unfitting: list[int] = []

        def run(batch: list[int]) -> None:
            chosen = list(chain.from_iterable(questions[key] for key in batch))
            try:
                windows = [job.read(questions[key]) for key in batch]
                arriving = self._score_questions(windows, job.top_k, job.ids_of(chosen))
            except torch.OutOfMemoryError:
                if len(batch) > 1:
                    raise
                unfitting.extend(chosen)
                return
            job.keep(chosen, arriving)

        for batch in self.batches.of([len(job.windows[indices[0]].context) for indices in questions]):
            self.batches.run(batch, run)
        return unfitting

    @torch.inference_mode()
    def _score_questions(self, questions: list[list[Window]], top_k: int, ids: PositionIds | None) -> Arriving:
        self.threads.bind()
        hidden = shared_context.hidden(self.model, questions, self.batches.of_continuations)
        return sent(self.head, hidden, list(chain.from_iterable(questions)), top_k, ids)

    def _run_whole(self, job: _Job, indices: Sequence[int]) -> None:
        # windows that read the same tokens, such as one-token choices of a question, share one pass
        readers: dict[tuple[int, ...], list[int]] = {}
        for index in indices:
            readers.setdefault(job.windows[index].inputs, []).append(index)
        inputs = list(readers)

        def run(batch: list[int]) -> None:
            rows = [row for row, key in enumerate(batch) for _ in readers[inputs[key]]]
            chosen = list(chain.from_iterable(readers[inputs[key]] for key in batch))
            windows_by_row = list(zip(rows, job.read(chosen), strict=True))
            arriving = self._score_batch([inputs[key] for key in batch], windows_by_row, job.top_k, job.ids_of(chosen))
            job.keep(chosen, arriving)

        for batch in self.batches.of([len(key) for key in inputs]):
            self.batches.run(batch, run)

    @torch.inference_mode()
    def _score_batch(
        self, inputs: list[tuple[int, ...]], readers: list[tuple[int, Window]], top_k: int, ids: PositionIds | None
    ) -> Arriving:
        self.threads.bind()
        rows = Rows.of(inputs, readers, self.model.device)
        return rows.sent(self.head, rows.hidden(self.model), top_k, ids)


@frozen
class _Job:
    """A call of Engine.score: its arguments, batches of which the scores are arriving, and the scores by window."""

    windows: Sequence[Window]
    top_k: int
    done: Callable[[int, WindowScores], None]
    ids: Sequence[PositionIds] | None
    most_arriving: int
    arriving: list[tuple[Sequence[int], Arriving]] = field(default_factory=list)
    scores: dict[int, WindowScores] = field(default_factory=dict)

    def read(self, indices: Sequence[int]) -> list[Window]:
        return [self.windows[index] for index in indices]

    def ids_of(self, indices: Sequence[int]) -> PositionIds | None:
        return None if self.ids is None else np.concatenate([self.ids[index] for index in indices])

    def keep(self, indices: Sequence[int], arriving: Arriving) -> None:
        self.arriving.append((indices, arriving))
        self.take(self.most_arriving)

    def take(self, most_left: int) -> None:
        """Take the scores of the oldest batches."""
        while len(self.arriving) > most_left:
            indices, arriving = self.arriving.pop(0)
            for index, result in zip(indices, arriving(), strict=True):
                self.scores[index] = result
                self.done(index, result)
