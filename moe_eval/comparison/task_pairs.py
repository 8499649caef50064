"""Two arms' results of one task of the harness, paired by document."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moe_eval.errors import UsageError
from moe_eval.frozen import frozen
from moe_eval.records.task_results import DocumentResult, TaskResults

Array = npt.NDArray[Any]
Aggregation = Literal["mean", "perplexity", "bits per byte"]
BITS = math.log(2)
_LONGEST_SETTINGS = 200


@frozen
class Paired:
    """Both arms' scores of the same documents. Arrays of shape (documents,), means over repeats.

    `weights`: of every document in the score. `is_single`: neither arm has repeats.
    """

    reference: Array
    candidate: Array
    weights: Array
    aggregation: Aggregation
    is_single: bool

    @property
    def is_share(self) -> bool:
        """Whether the score is a mean of scores from 0 to 1."""
        both = np.concatenate([self.reference, self.candidate])
        return self.aggregation == "mean" and bool(((both >= 0) & (both <= 1)).all())


def check(before: TaskResults, after: TaskResults) -> None:
    """Refuse a task whose version, documents, prompts or generation arguments differ.

    Raises:
        UsageError: with the task and the first document.
    """
    name = before.task
    if before.version != after.version:
        raise UsageError(
            f"{name} has version {before.version} on one side and {after.version} on the other. "
            "Evaluate both arms on the same version."
        )
    sides = [{row.number: row for row in task.documents} for task in (before, after)]
    if missing := sides[0].keys() ^ sides[1].keys():
        counts = " and ".join(f"{len(side)}" for side in sides)
        raise UsageError(
            f"{name} was evaluated on other documents ({counts}), first of them document {min(missing)}. "
            "Give both arms the same --limit or --samples."
        )
    first = _first_changed(sides[0], sides[1], "document")
    if first:
        raise UsageError(f"{name} has other contents {first}. Evaluate both arms on the same version of the data set.")
    first = _first_changed(sides[0], sides[1], "prompt") or _first_changed(sides[0], sides[1], "target")
    if first:
        raise UsageError(
            f"{name} has other prompts or targets {first}. "
            "Give both arms the same --num_fewshot, --apply_chat_template, seeds and version of the task."
        )
    if before.generation != after.generation:
        settings = " and ".join((task.generation or "none")[:_LONGEST_SETTINGS] for task in (before, after))
        raise UsageError(f"{name} has other generation arguments: {settings}. Give both arms the same --gen_kwargs.")


def _first_changed(before: dict[int, DocumentResult], after: dict[int, DocumentResult], part: str) -> str:
    """In how many documents a part differs, and in which one first. Empty where it does in none."""
    changed = sorted(number for number in before if getattr(before[number], part) != getattr(after[number], part))
    return f"in {len(changed)} of {len(before)} documents, first in document {changed[0]}" if changed else ""


def paired(first: TaskResults, second: TaskResults, metric: str) -> Paired | None:
    """None where the harness's score is not made of single documents' scores."""
    aggregation = _aggregation(first, metric)
    if aggregation is None or aggregation != _aggregation(second, metric):
        return None
    sides = _by_document(first, metric), _by_document(second, metric)
    if sides[0].keys() != sides[1].keys():
        return None
    values = [np.array([side[number] for number in sides[0]], dtype=np.float64) for side in sides]
    weights = values[0][:, 1]
    # a log-likelihood is of the same words or bytes on both sides
    if not np.array_equal(weights, values[1][:, 1]):
        return None
    is_single = not any(row.repeat for task in (first, second) for row in task.documents)
    return Paired(values[0][:, 0], values[1][:, 0], weights, aggregation, is_single)


def _by_document(task: TaskResults, metric: str) -> dict[int, tuple[float, float]]:
    """The mean over repeats of every document that has this metric, and its weight."""
    scores: dict[int, list[tuple[float, float]]] = {}
    for row in task.documents:
        score = row.scores.get(metric)
        if score is not None and score.value is not None:
            scores.setdefault(row.number, []).append((score.value, score.weight))
    return {
        number: (math.fsum(value for value, _ in entries) / len(entries), entries[0][1])
        for number, entries in scores.items()
    }


def _aggregation(task: TaskResults, metric: str) -> Aggregation | None:
    """How the harness makes its score of the documents' scores: the way that gives its number."""
    first = [row for row in task.documents if row.repeat == 0]
    scores = [score for row in first if (score := row.scores.get(metric)) is not None]
    total = task.metrics[metric].score
    weight = math.fsum(score.weight for score in scores)
    if total is None or weight <= 0 or any(score.value is None for score in scores):
        return None
    mean = math.fsum(score.value or 0.0 for score in scores) / weight
    values: dict[Aggregation, float] = {"bits per byte": -mean / BITS, "perplexity": math.exp(min(-mean, 700.0))}
    if all(score.weight == 1 for score in scores):
        values = {"mean": mean, "perplexity": values["perplexity"]}
    return next(
        (name for name, value in values.items() if math.isclose(value, total, rel_tol=1e-6, abs_tol=1e-9)), None
    )
