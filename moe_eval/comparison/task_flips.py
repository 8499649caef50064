"""Answers that flip between two arms, and the documents that tell the most about a difference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import takewhile

import numpy as np

from moe_eval.comparison import flips
from moe_eval.records.task_comparison import ChangedDocument, Flips
from moe_eval.records.task_results import DocumentResult, TaskResults

MOST_CHANGED = 10
LONGEST_PROMPT, LONGEST_ANSWER = 2000, 1000
Sides = tuple[DocumentResult, DocumentResult]


def count(tasks: Sequence[tuple[TaskResults, TaskResults]], metric: str, *, higher_is_better: bool) -> Flips | None:
    """The flips of one metric over all documents of tasks. None where a score is neither 0 nor 1, or there is none.

    An answer is paired with the other arm's of the same repeat.
    """
    differences: list[int] = []
    shares: list[float] = []
    losses = gains = answers = 0
    for sides in tasks:
        for pairs in _by_document(sides):
            values = [(_value(before, metric), _value(after, metric)) for before, after in pairs]
            if any(value not in (0.0, 1.0) for pair in values for value in pair):
                return None
            signs = [(after or 0.0) - (before or 0.0) for before, after in values]
            up, down = signs.count(1.0), signs.count(-1.0)
            gains, losses = (gains + up, losses + down) if higher_is_better else (gains + down, losses + up)
            answers += len(values)
            differences.append(up - down)
            shares.append((up + down) / len(values))
    if not answers:
        return None
    if answers == len(differences):
        return Flips(losses, gains, answers, flips.mcnemar(losses, gains))
    error = float(np.std(shares, ddof=1) / math.sqrt(len(shares))) if len(shares) > 1 else math.inf
    noise = _noise([reference for reference, _ in tasks], metric)
    return Flips(losses, gains, answers, flips.clustered(differences), error, noise)


def _noise(tasks: Sequence[TaskResults], metric: str) -> float | None:
    """The chance that two repeats of one document differ, as the mean over documents. None without repeats."""
    chances = []
    for task in tasks:
        rights: dict[int, list[float]] = {}
        for row in task.documents:
            rights.setdefault(row.number, []).append(_value(row, metric) or 0.0)
        for values in rights.values():
            repeats, right = len(values), sum(values)
            if repeats > 1:
                chances.append(2 * right * (repeats - right) / (repeats * (repeats - 1)))
    return math.fsum(chances) / len(chances) if chances else None


def changed(
    tasks: Sequence[tuple[TaskResults, TaskResults]], metric: str, *, higher_is_better: bool
) -> tuple[ChangedDocument, ...]:
    """The documents that tell the most about a difference, half of them losses where there are as many.

    Scores of 0 and 1 say nothing of how far an answer moved. There those come first whose margin moved the most, and of
    generated text those whose texts part the earliest, as a share of the longer one. Other scores come by their change.
    """
    sides: list[tuple[tuple[float, ...], bool, ChangedDocument]] = []
    for task in tasks:
        for pairs in _by_document(task):
            entries = [entry for pair in pairs if (entry := _entry(task[0].task, pair, metric, higher_is_better))]
            sides += sorted(entries, key=lambda entry: entry[0])[:1]
    sides.sort(key=lambda entry: entry[0])
    losses = [document for _, is_loss, document in sides if is_loss]
    gains = [document for _, is_loss, document in sides if not is_loss]
    half = MOST_CHANGED // 2
    return (
        *losses[: max(half, MOST_CHANGED - len(gains))],
        *gains[: max(half, MOST_CHANGED - len(losses))],
    )


def _entry(
    task: str, pair: Sides, metric: str, higher_is_better: bool
) -> tuple[tuple[float, ...], bool, ChangedDocument] | None:
    """A document with the key that it is sorted by and whether it is a loss. None where both scores are the same."""
    before, after = pair
    first, second = _value(before, metric), _value(after, metric)
    if first is None or second is None or first == second:
        return None
    margins = None
    if before.margin is not None and after.margin is not None:
        margins = before.margin, after.margin
    is_binary = {first, second} == {0.0, 1.0}
    moved = abs(margins[1] - margins[0]) if margins and is_binary else abs(second - first)
    texts = [row.response or row.answer for row in pair]
    apart = 0.0 if margins else _common(texts[0], texts[1])
    is_loss = (second < first) is higher_is_better
    document = ChangedDocument(
        task,
        before.number,
        before.repeat,
        is_loss,
        before.prompt_text[-LONGEST_PROMPT:],
        before.target_text[:LONGEST_ANSWER],
        (before.answer[:LONGEST_ANSWER], after.answer[:LONGEST_ANSWER]),
        (before.response[:LONGEST_ANSWER], after.response[:LONGEST_ANSWER]),
        (first, second),
        margins,
    )
    return (-moved, apart, before.number), is_loss, document


def _common(first: str, second: str) -> float:
    """The share of the longer text that both begin with."""
    alike = sum(1 for _ in takewhile(lambda letters: letters[0] == letters[1], zip(first, second, strict=False)))
    return alike / max(len(first), len(second), 1)


def _by_document(sides: tuple[TaskResults, TaskResults]) -> Iterator[list[Sides]]:
    """Both arms' results of every document, a pair for every repeat that both have."""
    after = {(row.number, row.repeat): row for row in sides[1].documents}
    documents: dict[int, list[Sides]] = {}
    for row in sides[0].documents:
        if (row.number, row.repeat) in after:
            documents.setdefault(row.number, []).append((row, after[row.number, row.repeat]))
    yield from documents.values()


def _value(row: DocumentResult, metric: str) -> float | None:
    score = row.scores.get(metric)
    return score.value if score else None
