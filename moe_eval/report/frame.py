"""The figures of recorded arms as rows of a table, for pandas and files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from moe_eval.records.by_arm import ArmRecords
from moe_eval.records.comparison import ComparisonRecord

if TYPE_CHECKING:
    import pandas

_COLUMNS = ("arm", "precision", "evaluator", "shape", "metric", "median", "low", "high")
_FIGURES = {"token_ppl": "perplexity", **{name: name for name in ("word_ppl", "byte_ppl", "bits_per_byte")}}
Row = tuple[str, str, str, str, str, float, float | None, float | None]


def dataframe(arms: Sequence[ArmRecords], comparison: ComparisonRecord | None) -> pandas.DataFrame:
    """One row for every arm, shape and metric, see interface.Results.to_dataframe."""
    import pandas

    rows = [row for arm in arms for row in _rows(arm, comparison)]
    frame = pandas.DataFrame(rows, columns=list(_COLUMNS))
    return frame.astype({"median": float, "low": float, "high": float})


def _rows(arm: ArmRecords, comparison: ComparisonRecord | None) -> Iterator[Row]:
    yield from (*_quality(arm, comparison), *_tasks(arm), *_latency(arm), *_serving(arm), *_kernels(arm))


def _serving(arm: ArmRecords) -> Iterator[Row]:
    for point in arm.serving.points if arm.serving else ():
        for entry in fields(point.metrics):
            if (metric := getattr(point.metrics, entry.name)) is not None:
                interval = metric.median, metric.low, metric.high
                yield arm.name, arm.precision, "serving", point.name, entry.name, *interval


def _quality(arm: ArmRecords, comparison: ComparisonRecord | None) -> Iterator[Row]:
    figures = arm.quality.figures if arm.quality else None
    for metric, name in _FIGURES.items() if figures else ():
        value = getattr(figures, name)
        if value is not None:
            yield arm.name, arm.precision, "quality", "", metric, value, None, None
    for pair in comparison.pairs if comparison else ():
        quality = pair.quality if pair.other == arm.name else None
        if quality and quality.ln_ppl_ratio:
            ratio = quality.ln_ppl_ratio
            yield arm.name, arm.precision, "quality", "", "ln_ppl_ratio", ratio.value, ratio.low, ratio.high
        if quality and quality.divergence:
            yield arm.name, arm.precision, "quality", "", "kld_mean", quality.divergence.mean, None, None


def _tasks(arm: ArmRecords) -> Iterator[Row]:
    """Scores of tasks and groups, as TASK/METRIC,FILTER."""
    names = {task.task: task.metrics for task in arm.tasks.tasks} if arm.tasks else {}
    names |= {group.group: group.metrics for group in arm.tasks.groups} if arm.tasks else {}
    for name, metrics in names.items():
        for metric, figure in metrics.items():
            if figure.score is not None:
                yield arm.name, arm.precision, "tasks", "", f"{name}/{metric}", figure.score, None, None


def _latency(arm: ArmRecords) -> Iterator[Row]:
    for shape in arm.latency.shapes if arm.latency else ():
        for entry in fields(shape.metrics):
            metric = getattr(shape.metrics, entry.name)
            if metric is not None:
                interval = metric.median, metric.low, metric.high
                yield arm.name, arm.precision, "latency", shape.name, entry.name, *interval


def _kernels(arm: ArmRecords) -> Iterator[Row]:
    for shape, record in arm.kernels.items():
        for phase, times in record.phases.items():
            for category, time in times.categories.items():
                metric = f"{phase}/{category}_ms"
                yield arm.name, arm.precision, "kernels", shape, metric, time.ms, None, None
