"""Two arms' results of the harness's tasks, paired by document: scores, difference with interval, flips, recovery."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moe_eval import stats
from moe_eval.comparison import flips
from moe_eval.errors import UsageError
from moe_eval.records.task_comparison import Flips, TaskComparison
from moe_eval.records.task_results import ArmTaskResults, DocumentResult, TaskGroup, TaskMetric, TaskResults
from moe_eval.stats import ERROR_RATE

Array = npt.NDArray[Any]
Aggregation = Literal["mean", "perplexity", "bits per byte"]
_BITS = math.log(2)


@dataclass(frozen=True)
class _Paired:
    """Both arms' scores of the same documents. Arrays of shape (documents,), means over repeats.

    `weights`: of every document in the score. `is_single`: neither arm has repeats.
    """

    reference: Array
    candidate: Array
    weights: Array
    aggregation: Aggregation
    is_single: bool


def rows(reference: ArmTaskResults, candidate: ArmTaskResults) -> Iterator[TaskComparison]:
    """A row for every metric of every task and group that both arms have, groups before their tasks, without verdicts.

    Raises:
        UsageError: documents or prompts of a task differ.
    """
    tasks = {task.task: task for task in reference.tasks}
    both = {task.task: (tasks[task.task], task) for task in candidate.tasks if task.task in tasks}
    for sides in both.values():
        _check(*sides)
    by_name = {group.group: group for group in reference.groups}
    groups = [(by_name[group.group], group) for group in candidate.groups if group.group in by_name]
    groups = [sides for sides in groups if set(sides[0].tasks) == set(sides[1].tasks) <= set(both)]
    parents = [before for before, _ in groups]
    for before, after in groups:
        yield from _of_group(before, after, both, _parent(before.group, before.tasks, parents))
    for name, (first, second) in both.items():
        for metric in first.metrics:
            if metric in second.metrics:
                paired = _paired(first, second, metric)
                row = _empty(name, metric, (first.metrics, second.metrics), _parent(name, (name,), parents))
                yield _filled(row, paired)


def _check(before: TaskResults, after: TaskResults) -> None:
    """Refuse a task whose documents or prompts differ."""
    sides = [{row.number: row for row in task.documents} for task in (before, after)]
    if sides[0].keys() != sides[1].keys():
        counts = " and ".join(f"{len(side)}" for side in sides)
        raise UsageError(
            f"{before.task} was evaluated on other documents ({counts}). Give both arms the same --limit or --samples."
        )
    changed = [row for number, row in sides[0].items() if row.document != sides[1][number].document]
    if changed:
        raise UsageError(
            f"{before.task} has other contents in {len(changed)} of {len(sides[0])} documents. "
            "Evaluate both arms on the same version of the data set."
        )
    changed = [row for number, row in sides[0].items() if _asked(row) != _asked(sides[1][number])]
    if changed:
        raise UsageError(
            f"{before.task} has other prompts or targets in {len(changed)} of {len(sides[0])} documents. "
            "Give both arms the same --num_fewshot, --apply_chat_template, seeds and version of the task."
        )


def _asked(row: DocumentResult) -> tuple[str, str]:
    return row.prompt, row.target


def _parent(name: str, tasks: Sequence[str], groups: Sequence[TaskGroup]) -> str | None:
    """The smallest group that holds these tasks and is not `name` itself."""
    holding = [group for group in groups if group.group != name and set(tasks) <= set(group.tasks)]
    holding = [group for group in holding if len(group.tasks) > len(tasks) or (name,) == tuple(tasks)]
    return min(holding, key=lambda group: len(group.tasks)).group if holding else None


def _empty(
    name: str, metric: str, sides: tuple[Mapping[str, TaskMetric], Mapping[str, TaskMetric]], group: str | None
) -> TaskComparison:
    first, second = (side[metric] for side in sides)
    is_deciding = metric == next(iter(sides[0]))
    direction = first.higher_is_better if first.higher_is_better == second.higher_is_better else None
    return TaskComparison(name, metric, is_deciding, group, False, direction, 0, first.score, second.score)


def _paired(first: TaskResults, second: TaskResults, metric: str) -> _Paired | None:
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
    return _Paired(values[0][:, 0], values[1][:, 0], weights, aggregation, is_single)


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
    values: dict[Aggregation, float] = {"bits per byte": -mean / _BITS, "perplexity": math.exp(min(-mean, 700.0))}
    if all(score.weight == 1 for score in scores):
        values = {"mean": mean, "perplexity": values["perplexity"]}
    return next(
        (name for name, value in values.items() if math.isclose(value, total, rel_tol=1e-6, abs_tol=1e-9)), None
    )


def _of_group(
    before: TaskGroup,
    after: TaskGroup,
    both: Mapping[str, tuple[TaskResults, TaskResults]],
    parent: str | None,
) -> Iterator[TaskComparison]:
    """The rows of a group: its documents are those of its tasks, with the weights that the harness gives them."""
    for metric in before.metrics:
        if metric not in after.metrics:
            continue
        row = replace(_empty(before.group, metric, (before.metrics, after.metrics), parent), is_group=True)
        members = [both[name] for name in before.tasks if metric in both[name][0].metrics]
        parts = [_paired(*sides, metric) for sides in members]
        means = [part for part in parts if part is not None and part.aggregation == "mean"]
        weighing = [name for name in before.weights.get(metric, ()) if name in after.weights.get(metric, ())]
        if not weighing or len(means) < len(parts):
            yield replace(row, reason="The score of the group is no mean over documents or tasks.")
            continue
        by_task = weighing[0] == "tasks"
        weights = [part.weights / (len(part.weights) if by_task else 1) for part in means]
        first, second = (np.concatenate([getattr(part, name) for part in means]) for name in ("reference", "candidate"))
        is_single = all(part.is_single for part in means)
        yield _filled(row, _Paired(first, second, np.concatenate(weights), "mean", is_single))


def _filled(row: TaskComparison, paired: _Paired | None) -> TaskComparison:
    if paired is None:
        return replace(row, reason="The score is not made of single documents' scores.")
    sign = 1.0 if paired.aggregation == "mean" else -1.0
    total = float(paired.weights.sum())
    by_unit = sign * (paired.candidate - paired.reference)
    sums = by_unit * paired.weights if paired.aggregation == "mean" else by_unit
    if paired.aggregation == "bits per byte":
        sums = sums / _BITS
    means = [_score(side, paired, total) for side in (paired.reference, paired.candidate)]
    row = replace(
        row,
        documents=len(sums),
        reference=means[0],
        other=means[1],
        difference=float(sums.sum()) / total,
        is_logarithm=paired.aggregation == "perplexity",
        recovery=_recovery(row, means),
    )
    both = np.concatenate([paired.reference, paired.candidate])
    is_share = paired.aggregation == "mean" and bool(((both >= 0) & (both <= 1)).all())
    row = replace(row, is_share=is_share)
    is_binary = is_share and paired.is_single and bool(np.isin(both, (0.0, 1.0)).all())
    if is_binary and row.higher_is_better is not None:
        row = replace(row, flips=_flips(sums, row.higher_is_better))
        if bool((paired.weights == 1).all()):
            low, high = flips.interval(int((sums < 0).sum()), int((sums > 0).sum()), len(sums))
            return replace(row, low=low, high=high)
    return _with_interval(row, sums, paired.weights)


def _score(side: Array, paired: _Paired, total: float) -> float:
    if paired.aggregation == "mean":
        return float((side * paired.weights).sum()) / total
    nats = -float(side.sum()) / total
    return nats / _BITS if paired.aggregation == "bits per byte" else math.exp(min(nats, 700.0))


def _recovery(row: TaskComparison, means: Sequence[float]) -> float | None:
    better, worse = (means[1], means[0]) if row.higher_is_better else (means[0], means[1])
    return better / worse if row.higher_is_better is not None and better >= 0 < worse else None


def _flips(differences: Array, higher_is_better: bool) -> Flips:
    below, above = int((differences < 0).sum()), int((differences > 0).sum())
    losses, gains = (below, above) if higher_is_better else (above, below)
    return Flips(losses, gains, flips.mcnemar(losses, gains))


def _with_interval(row: TaskComparison, sums: Array, weights: Array) -> TaskComparison:
    """The interval over documents: Student's, and of shares no narrower than what no document may show by chance."""
    try:
        estimate = stats.ratio_of_sums(sums, weights)
    except UsageError:
        return replace(row, reason="An interval needs two documents.")
    half = estimate.high - estimate.value
    if row.is_share:
        half = max(half, 1 - ERROR_RATE ** (1 / (estimate.df + 1)))
    low, high = estimate.value - half, estimate.value + half
    return replace(row, low=low, high=high, error=estimate.error, df=estimate.df)
