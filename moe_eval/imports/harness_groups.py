"""Metrics of tasks and groups in the harness's results, and how groups weigh their tasks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field

from moe_eval.frozen import frozen
from moe_eval.imports.harness_documents import number
from moe_eval.records.task_results import TaskGroup, TaskMetric, Weights


@frozen
class Results:
    """What is read of a file of results, see lm_eval.result_schema."""

    results: Mapping[str, Mapping[str, object]]
    group_subtasks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    versions: Mapping[str, object] = field(default_factory=dict)
    n_shot: Mapping[str, int] = field(default_factory=dict)
    n_samples: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    higher_is_better: Mapping[str, Mapping[str, bool | None] | None] = field(default_factory=dict)
    config: Mapping[str, object] = field(default_factory=dict)
    date: float | None = None
    model_source: str | None = None
    model_name: str | None = None

    def metrics(self, name: str) -> dict[str, TaskMetric]:
        """The metrics of a task or a group by METRIC,FILTER."""
        directions, figures = self.higher_is_better.get(name) or {}, self.results.get(name, {})
        metrics = {}
        for key, value in figures.items():
            metric, comma, filtered = key.partition(",")
            if comma and not metric.endswith("_stderr"):
                error = number(figures.get(f"{metric}_stderr,{filtered}"))
                metrics[key] = TaskMetric(number(value), directions.get(metric), error)
        return metrics


def groups(results: Results) -> Iterator[TaskGroup]:
    """The groups that have a score."""
    for name, children in results.group_subtasks.items():
        metrics = results.metrics(name)
        tasks = tuple(dict.fromkeys(_leaves(children, results.group_subtasks)))
        if metrics and tasks:
            yield TaskGroup(
                name,
                tasks,
                metrics,
                {key: _weights(tasks, key, metric.score, results) for key, metric in metrics.items()},
            )


def _leaves(names: Sequence[str], subtasks: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for name in names:
        if subtasks.get(name):
            yield from _leaves(subtasks[name], {key: value for key, value in subtasks.items() if key != name})
        else:
            yield name


def _weights(tasks: Sequence[str], metric: str, total: float | None, results: Results) -> tuple[Weights, ...]:
    """Which weights give the harness's own number: it does not write them down, and every metric has its own."""
    members = [task for task in tasks if metric in results.results.get(task, {})]
    scores = [number(results.results[task][metric]) or 0.0 for task in members]
    lengths = [float(results.n_samples.get(task, {}).get("effective", 0)) for task in members]
    sizes: dict[Weights, list[float]] = {"documents": lengths, "tasks": [1.0] * len(scores)}
    return tuple(name for name, weights in sizes.items() if _is_mean(total, scores, weights))


def _is_mean(total: float | None, scores: Sequence[float], weights: Sequence[float]) -> bool:
    weight = math.fsum(weights)
    mean = math.fsum(map(math.prod, zip(scores, weights, strict=True))) / weight if weight else math.nan
    return total is not None and math.isclose(mean, total, rel_tol=1e-6, abs_tol=1e-9)
