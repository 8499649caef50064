"""The sentences on tasks of the harness. Every number in them stands with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moe_eval.records.task_comparison import TaskComparison, TaskVerdict

_LEAST_DIGITS, _MOST_DIGITS = 3, 6
_MOST_NAMED = 6


def sentences(rows: Sequence[TaskComparison]) -> list[str]:
    """A sentence for every verdict of a task or group that stands for itself. Of many, losses come first."""
    order = (TaskVerdict.DROPS, TaskVerdict.OPEN, TaskVerdict.HOLDS, TaskVerdict.NOT_JUDGED)
    judged = [row for row in rows if row.is_deciding and row.group is None]
    if len(judged) <= _MOST_NAMED:
        return [sentence(row) for row in judged]
    judged.sort(key=lambda row: order.index(row.verdict))
    counts = [(sum(row.verdict is verdict for row in judged), verdict.value) for verdict in order]
    total = ", ".join(f"{count} {word}" for count, word in counts if count)
    return [*(sentence(row) for row in judged[:_MOST_NAMED]), f"Of {len(judged)} tasks: {total}."]


def digits_of(low: float, high: float) -> int:
    """Decimals for a difference and its interval: two significant digits of its width, at least three."""
    if not math.isfinite(high - low) or high == low:
        return _LEAST_DIGITS
    return min(max(_LEAST_DIGITS, 1 - math.floor(math.log10(high - low))), _MOST_DIGITS)


def sentence(row: TaskComparison) -> str:
    """The verdict on a task with its numbers."""
    if row.gain is None:
        return f"{row.task} is not judged. {row.reason}".rstrip()
    value, low, high = row.gain
    digits = digits_of(low, high)
    metric = row.metric.partition(",")[0]
    figure = f"ln({metric})" if row.is_logarithm else metric
    numbers = f"{_signed(value, digits)} {figure} ({_signed(low, digits)} to {_signed(high, digits)})"
    if row.verdict is TaskVerdict.HOLDS:
        return f"{row.task} holds: {numbers}."
    if row.verdict is TaskVerdict.DROPS:
        worse = f"{-value:.{digits}f} {figure} ({-high:.{digits}f} to {-low:.{digits}f})"
        return f"{row.task} drops by {worse}."
    return f"{row.task} is open: {numbers}. {row.reason}"


def _signed(value: float, digits: int) -> str:
    """A zero has no sign."""
    rounded = round(value, digits)
    return f"{rounded:+.{digits}f}" if rounded else f"{0:.{digits}f}"
