"""What a gate makes of tasks of the harness: the gain in one task, and the share of flips in every task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from moe_eval.comparison import flips, task_quality
from moe_eval.comparison.task_wording import digits_of
from moe_eval.records.task_comparison import Flips, TaskComparison

Figure = tuple[str, bool, float | None]


def figures(rows: Sequence[TaskComparison], task: str | None, sign: Literal[">=", "<="], bound: float) -> list[Figure]:
    """The gain in `task`, or without one the flips of every task whose scores are 0 or 1.

    Returns:
        Of every figure: it in words, whether its whole interval holds the bound, and the p-value of one as bad where
        the truth is at the bound. None where nothing is to be decided.
    """
    deciding = [row for row in rows if row.is_deciding]
    if task is not None:
        gains = [_gain(row, sign, bound) for row in deciding if row.task == task]
        return gains or [(f"there is no task {task} on both sides", False, None)]
    counted = [(row, row.flips) for row in deciding if row.flips and not row.is_group]
    shares = [_flips(row, counts, sign, bound) for row, counts in counted]
    return shares or [("no task on both sides has scores of 0 or 1", False, None)]


def _gain(row: TaskComparison, sign: Literal[">=", "<="], bound: float) -> Figure:
    if row.gain is None:
        return f"there is no interval. {row.reason}", False, None
    value, low, high = row.gain
    digits = digits_of(low, high)
    why = f"it is {value:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"
    is_least = sign == ">="
    p_value = task_quality.p_value(row, bound, is_above=not is_least)
    return why, low >= bound if is_least else high <= bound, p_value


def _flips(row: TaskComparison, counts: Flips, sign: Literal[">=", "<="], bound: float) -> Figure:
    """The share of answers that flip either way, with its interval and test, exact where there are no repeats."""
    count, is_least = counts.losses + counts.gains, sign == ">="
    if counts.share_error is None:
        low, high = flips.share_interval(count, counts.answers)
        p_value = flips.share_p_value(count, counts.answers, bound, is_above=not is_least)
    else:
        estimate = counts.share, counts.share_error, row.documents
        low, high = flips.clustered_share_interval(*estimate)
        p_value = flips.clustered_share_p_value(*estimate, bound, is_above=not is_least)
    why = f"{row.task} has {count} of {counts.answers}, {counts.share:.4f} ({low:.4f} to {high:.4f})"
    return why, low >= bound if is_least else high <= bound, p_value
