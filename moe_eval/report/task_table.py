"""Tasks of the harness in two tables: scores with their recovery, and the paired difference with its verdict."""

from __future__ import annotations

from collections.abc import Sequence

from moe_eval.comparison.task_wording import digits_of
from moe_eval.records.comparison import ComparisonRecord, Pair
from moe_eval.records.task_comparison import TaskComparison
from moe_eval.report.text import (
    LONGEST_SENTENCE,
    Row,
    Table,
    named,
    names_of,
    number,
    percent,
    plain,
    span,
    without_empty_columns,
)


def tables(comparison: ComparisonRecord, *, is_short: bool = False) -> list[Table]:
    """Two tables for every pair. Short ones have what decides alone, without the parts of groups."""
    tables_of_pairs: list[Table] = []
    for pair in comparison.pairs:
        entries = [row for row in pair.tasks if not is_short or (row.is_deciding and row.group is None)]
        ordered = _ordered(entries)
        scores = [*(_scores(pair, row) for row in ordered), *_average(pair)]
        drop = f"{comparison.rules.max_drop:g} is allowed"
        tables_of_pairs += without_empty_columns(f"Recovery: {names_of(pair)}", scores)
        tables_of_pairs += without_empty_columns(
            f"Tasks: {names_of(pair)}, paired by document ({drop})", [_row(row) for row in ordered]
        )
    return tables_of_pairs


def _ordered(entries: Sequence[TaskComparison]) -> list[TaskComparison]:
    """A group before its parts."""

    def parts(name: str | None) -> list[TaskComparison]:
        within = [row for row in entries if row.group == name]
        if name is not None:
            return within
        present = {row.task for row in entries}
        return [row for row in entries if row.group is None or row.group not in present]

    def below(row: TaskComparison) -> list[TaskComparison]:
        inner = parts(row.task) if row.is_group and row.is_deciding else []
        return [row, *(entry for part in inner for entry in below(part))]

    return [entry for row in parts(None) for entry in below(row)]


def _scores(pair: Pair, row: TaskComparison) -> Row:
    return [
        ("task", plain(row.task)),
        ("metric", plain(row.metric.removesuffix(",none"))),
        (named(pair.reference), _with_error(row.reference, row.reference_error)),
        (named(pair.other), _with_error(row.other, row.other_error)),
        ("recovery", _percent(row.recovery)),
    ]


def _with_error(score: float | None, error: float | None) -> str:
    """A score with the harness's standard error."""
    return number(score, 4) if error is None or score is None else f"{number(score, 4)} ± {number(error, 4)}"


def _average(pair: Pair) -> list[Row]:
    """The mean of what decides, where all of it is a share: other metrics have no common unit."""
    rows = [row for row in pair.tasks if row.is_deciding and row.group is None and row.gain is not None]
    if len(rows) < 2 or not all(row.is_share and row.higher_is_better for row in rows):
        return []
    reference = sum(row.reference or 0.0 for row in rows) / len(rows)
    other = sum(row.other or 0.0 for row in rows) / len(rows)
    cells = (number(reference, 4), number(other, 4), _percent(other / reference if reference else None))
    heads = ("task", "metric", named(pair.reference), named(pair.other), "recovery")
    return [list(zip(heads, ("average", "", *cells), strict=True))]


def _row(row: TaskComparison) -> Row:
    is_interval = row.low is not None and row.high is not None
    digits = digits_of(row.low or 0.0, row.high or 0.0)
    flips = row.flips
    difference = "" if row.difference is None else number(row.difference, digits, signed=True)
    return [
        ("task", plain(row.task)),
        ("group", plain(row.group or "")),
        ("metric", plain(row.metric.removesuffix(",none"))),
        ("documents", f"{row.documents:,}" if row.documents else ""),
        ("difference", f"{difference} (ln)" if row.is_logarithm else difference),
        ("95 % interval", span(row.low, row.high, digits, signed=True) if is_interval else ""),
        ("right to wrong", f"{flips.losses}" if flips else ""),
        ("wrong to right", f"{flips.gains}" if flips else ""),
        ("McNemar p", f"{flips.p_value:.3g}" if flips else ""),
        ("flips between repeats", _percent(flips.noise) if flips else ""),
        ("verdict", row.verdict.value),
        ("remark", plain(row.reason, LONGEST_SENTENCE)),
    ]


def _percent(share: float | None) -> str:
    """Empty where there is no such figure: it is nothing that was not measured."""
    return "" if share is None else number(percent(share), 1, unit=" %")
