"""Tasks of the harness in a table: both scores, the difference with its interval, flips and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from moe_eval.comparison.task_wording import digits_of
from moe_eval.records.comparison import ComparisonRecord, Pair
from moe_eval.records.task_comparison import TaskComparison
from moe_eval.report.text import (
    LONGEST_SENTENCE,
    NONE,
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
    """A table for every pair. A short one has what decides alone, without the parts of groups."""
    tables_of_pairs: list[Table] = []
    for pair in comparison.pairs:
        entries = [row for row in pair.tasks if not is_short or (row.is_deciding and row.group is None)]
        drop = f"{comparison.rules.max_drop:g} is allowed"
        tables_of_pairs += without_empty_columns(
            f"Tasks: {names_of(pair)} ({drop})", [_row(pair, row) for row in _ordered(entries)]
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


def _row(pair: Pair, row: TaskComparison) -> Row:
    is_interval = row.low is not None and row.high is not None
    digits = digits_of(row.low or 0.0, row.high or 0.0)
    flips = row.flips
    difference = number(row.difference, digits, signed=True)
    return [
        ("task", plain(row.task)),
        ("group", plain(row.group or "")),
        ("metric", plain(row.metric.removesuffix(",none"))),
        ("documents", f"{row.documents:,}" if row.documents else NONE),
        (named(pair.reference), number(row.reference, 4)),
        (named(pair.other), number(row.other, 4)),
        ("difference", f"{difference} (ln)" if row.is_logarithm else difference),
        ("95 % interval", span(row.low, row.high, digits, signed=True) if is_interval else NONE),
        ("right to wrong", f"{flips.losses}" if flips else NONE),
        ("wrong to right", f"{flips.gains}" if flips else NONE),
        ("McNemar p", f"{flips.p_value:.3g}" if flips else NONE),
        ("recovery", number(percent(row.recovery), 1, unit=" %")),
        ("verdict", row.verdict.value if row.is_deciding else NONE),
        ("remark", plain(row.reason, LONGEST_SENTENCE)),
    ]
