"""Two arms' results of the harness's tasks, paired by document: scores, difference with interval, flips, recovery."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from moe_eval import stats
from moe_eval.comparison import flips, task_flips
from moe_eval.comparison.task_pairs import BITS, Array, Paired, check, paired
from moe_eval.errors import UsageError
from moe_eval.records.task_comparison import TaskComparison
from moe_eval.records.task_results import ArmTaskResults, TaskGroup, TaskMetric, TaskResults
from moe_eval.stats import ERROR_RATE

_Metrics = Mapping[str, TaskMetric]
_Tasks = tuple[TaskResults, TaskResults]


def rows(reference: ArmTaskResults, candidate: ArmTaskResults) -> Iterator[TaskComparison]:
    """A row for every metric of every task and group that both arms have, groups before their tasks, without verdicts.

    Raises:
        UsageError: documents or prompts of a task differ.
    """
    tasks = {task.task: task for task in reference.tasks}
    both = {task.task: (tasks[task.task], task) for task in candidate.tasks if task.task in tasks}
    for sides in both.values():
        check(*sides)
    by_name = {group.group: group for group in reference.groups}
    groups = [(by_name[group.group], group) for group in candidate.groups if group.group in by_name]
    groups = [sides for sides in groups if set(sides[0].tasks) == set(sides[1].tasks) <= set(both)]
    parents = [before for before, _ in groups]
    for before, after in groups:
        yield from _of_group(before, after, both, _parent(before.group, before.tasks, parents))
    for name, pair in both.items():
        metrics = pair[0].metrics, pair[1].metrics
        for metric in metrics[0]:
            if metric in metrics[1]:
                row = _empty(name, metric, metrics, _parent(name, (name,), parents))
                yield _filled(row, paired(*pair, metric), [pair])
    names = {*both, *(group.group for group in parents)}
    yield from _alone(reference, names)
    for row in _alone(candidate, names):
        score, error = row.reference, row.reference_error
        yield replace(row, reference=None, reference_error=None, other=score, other_error=error)


def _alone(arm: ArmTaskResults, names: Collection[str]) -> Iterator[TaskComparison]:
    """A row for every task and group that the other arm has not, but for parts of groups."""
    entries = [(group.group, group.tasks, group.metrics) for group in arm.groups]
    entries += [(task.task, (task.task,), task.metrics) for task in arm.tasks]
    for name, tasks, metrics in entries:
        if name not in names and _parent(name, tasks, arm.groups) is None and not set(tasks) <= set(names):
            row = _empty(name, next(iter(metrics)), (metrics, metrics), None)
            yield replace(row, other=None, other_error=None, reason="It was evaluated on one side alone.")


def _parent(name: str, tasks: Sequence[str], groups: Sequence[TaskGroup]) -> str | None:
    """The smallest group that holds these tasks and is not `name` itself."""
    holding = [group for group in groups if group.group != name and set(tasks) <= set(group.tasks)]
    holding = [group for group in holding if len(group.tasks) > len(tasks) or (name,) == tuple(tasks)]
    return min(holding, key=lambda group: len(group.tasks)).group if holding else None


def _empty(name: str, metric: str, sides: tuple[_Metrics, _Metrics], group: str | None) -> TaskComparison:
    first, second = (side[metric] for side in sides)
    is_deciding = metric == next(iter(sides[0]))
    direction = first.higher_is_better if first.higher_is_better == second.higher_is_better else None
    scores, errors = (first.score, second.score), (first.error, second.error)
    return TaskComparison(name, metric, is_deciding, group, False, direction, 0, *scores, *errors)


def _of_group(
    before: TaskGroup, after: TaskGroup, both: Mapping[str, _Tasks], parent: str | None
) -> Iterator[TaskComparison]:
    """The rows of a group: its documents are those of its tasks, with the weights that the harness gives them."""
    for metric in before.metrics:
        if metric not in after.metrics:
            continue
        row = replace(_empty(before.group, metric, (before.metrics, after.metrics), parent), is_group=True)
        members = [both[name] for name in before.tasks if metric in both[name][0].metrics]
        parts = [part for sides in members if (part := paired(*sides, metric)) and part.aggregation == "mean"]
        weighing = [name for name in before.weights.get(metric, ()) if name in after.weights.get(metric, ())]
        if not weighing or len(parts) < len(members):
            yield replace(row, reason="The score of the group is no mean over documents or tasks.")
            continue
        by_task = weighing[0] == "tasks"
        weights = [part.weights / (len(part.weights) if by_task else 1) for part in parts]
        first, second = (np.concatenate([getattr(part, name) for part in parts]) for name in ("reference", "candidate"))
        is_single = all(part.is_single for part in parts)
        yield _filled(row, Paired(first, second, np.concatenate(weights), "mean", is_single), members)


def _filled(row: TaskComparison, scores: Paired | None, tasks: Sequence[_Tasks]) -> TaskComparison:
    """A row with what the paired scores say. `tasks` are those of the scores."""
    if scores is None:
        return replace(row, reason="The score is not made of single documents' scores.")
    sign = 1.0 if scores.aggregation == "mean" else -1.0
    total = float(scores.weights.sum())
    by_unit = sign * (scores.candidate - scores.reference)
    sums = by_unit * scores.weights if scores.aggregation == "mean" else by_unit
    if scores.aggregation == "bits per byte":
        sums = sums / BITS
    means = [_score(side, scores, total) for side in (scores.reference, scores.candidate)]
    row = replace(
        row,
        documents=len(sums),
        split_documents=_split(tasks),
        reference=means[0],
        other=means[1],
        difference=float(sums.sum()) / total,
        is_logarithm=scores.aggregation == "perplexity",
        is_share=scores.is_share,
        recovery=_recovery(row, means),
    )
    row = _with_errors(_with_documents(row, scores, tasks), scores)
    if row.flips and scores.is_single and bool((scores.weights == 1).all()):
        low, high = flips.interval(int((sums < 0).sum()), int((sums > 0).sum()), len(sums))
        return replace(row, low=low, high=high)
    return _with_interval(row, sums, scores.weights)


def _split(tasks: Sequence[_Tasks]) -> int | None:
    sizes = [task.split_documents for task, _ in tasks]
    return sum(size for size in sizes if size) if all(sizes) else None


def _with_errors(row: TaskComparison, scores: Paired) -> TaskComparison:
    """A row with both standard errors, where the harness gave none and the score is a plain mean over documents."""
    if row.is_group or scores.aggregation != "mean" or len(scores.weights) < 2:
        return row
    sides = ((row.reference_error, scores.reference), (row.other_error, scores.candidate))
    errors = [float(side.std(ddof=1)) / math.sqrt(len(side)) if error is None else error for error, side in sides]
    return replace(row, reference_error=errors[0], other_error=errors[1])


def _with_documents(row: TaskComparison, scores: Paired, tasks: Sequence[_Tasks]) -> TaskComparison:
    """A row with its flips and the documents that changed."""
    if row.higher_is_better is None:
        return row
    is_higher_better = row.higher_is_better
    if row.is_share:
        row = replace(row, flips=task_flips.count(tasks, row.metric, higher_is_better=is_higher_better))
    if row.is_deciding and row.group is None:
        # documents of perplexities have log-likelihoods
        is_higher_better |= scores.aggregation != "mean"
        row = replace(row, changed=task_flips.changed(tasks, row.metric, higher_is_better=is_higher_better))
    return row


def _score(side: Array, scores: Paired, total: float) -> float:
    if scores.aggregation == "mean":
        return float((side * scores.weights).sum()) / total
    nats = -float(side.sum()) / total
    return nats / BITS if scores.aggregation == "bits per byte" else math.exp(min(nats, 700.0))


def _recovery(row: TaskComparison, means: Sequence[float]) -> float | None:
    better, worse = (means[1], means[0]) if row.higher_is_better else (means[0], means[1])
    return better / worse if row.higher_is_better is not None and better >= 0 < worse else None


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
