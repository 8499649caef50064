"""The verdict on tasks of the harness: an arm holds within a drop that the user allows, drops, or it is open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from moe_eval import stats
from moe_eval.comparison import flips
from moe_eval.records.task_comparison import TaskComparison, TaskVerdict
from moe_eval.stats import ERROR_RATE

_MOST_DOCUMENTS = 1_000_000


def judged(pairs: Sequence[Sequence[TaskComparison]], max_drop: float) -> list[tuple[TaskComparison, ...]]:
    """The rows of all pairs with their verdicts.

    An arm holds where its whole interval lies above -`max_drop`, else it drops where the interval lies below 0 and, of
    flips, McNemar's exact test says so. Among all tasks and arms some claim of a kind is wrong in at most ERROR_RATE of
    runs (Holm). What stands for itself is one family, and the parts of groups are another.
    """
    verdicts: dict[tuple[int, int], TaskVerdict] = {}
    for is_part in (False, True):
        family = [
            (pair, at)
            for pair, entries in enumerate(pairs)
            for at, row in enumerate(entries)
            if row.is_deciding and row.gain is not None and (row.group is not None) is is_part
        ]
        of_family = _verdicts([pairs[pair][at] for pair, at in family], max_drop)
        verdicts |= dict(zip(family, of_family, strict=True))
    return [
        tuple(
            _with_verdict(row, verdicts[pair, at], max_drop) if (pair, at) in verdicts else row
            for at, row in enumerate(entries)
        )
        for pair, entries in enumerate(pairs)
    ]


def _verdicts(entries: Sequence[TaskComparison], max_drop: float) -> list[TaskVerdict]:
    holds = stats.holm([p_value(row, -max_drop, is_above=True) for row in entries], ERROR_RATE)
    drops = stats.holm([p_value(row, 0.0, is_above=False) for row in entries], ERROR_RATE)
    verdicts = []
    for row, is_held, is_dropped in zip(entries, holds, drops, strict=True):
        _, low, high = row.gain or (0.0, -math.inf, math.inf)
        verdict = TaskVerdict.DROPS if is_dropped and high < 0 else TaskVerdict.OPEN
        verdicts.append(TaskVerdict.HOLDS if is_held and low >= -max_drop else verdict)
    return verdicts


def p_value(row: TaskComparison, bound: float, *, is_above: bool) -> float:
    """The chance of a gain this far above (or below) a bound, where the truth is no farther. 1 without an interval."""
    from scipy import special

    if row.gain is None:
        return 1.0
    sign = 1 if is_above else -1
    if row.error is None or row.df is None:
        losses, gains = (row.flips.losses, row.flips.gains) if row.flips else (0, 0)
        if bound == 0 and not is_above:
            return float(special.bdtr(gains, losses + gains, 0.5)) if losses > gains else 1.0
        return float(special.ndtr(-sign * float(flips.score(losses, gains, row.documents, bound))))
    distance = sign * (row.gain[0] - bound)
    p_of_t = stats.p_above(sign * row.gain[0], row.error, row.df, sign * bound)
    if not row.is_share:
        return p_of_t
    unseen: float = (1 - min(max(distance, 0.0), 1.0)) ** (row.df + 1)
    return max(p_of_t, unseen)


def documents_needed(row: TaskComparison, max_drop: float) -> int | None:
    """About how many documents settle an open row, if they scatter as those there are. None for more than a million.

    The statistic against a bound grows with the root of the documents.
    """
    from scipy import special

    if row.gain is None:
        return None
    enough = float(special.ndtri(1 - ERROR_RATE))
    statistics = []
    for bound, is_above in ((-max_drop, True), (0.0, False)):
        sign = 1 if is_above else -1
        if row.error is None:
            losses, gains = (row.flips.losses, row.flips.gains) if row.flips else (0, 0)
            statistics.append(sign * float(flips.score(losses, gains, row.documents, bound)))
        elif row.error:
            statistics.append(sign * (row.gain[0] - bound) / row.error)
    largest = max(statistics, default=0.0)
    if largest <= 0:
        return None
    needed = max(row.documents + 1, math.ceil(row.documents * (enough / largest) ** 2))
    return needed if needed <= _MOST_DOCUMENTS else None


def _with_verdict(row: TaskComparison, verdict: TaskVerdict, max_drop: float) -> TaskComparison:
    if verdict is not TaskVerdict.OPEN:
        return replace(row, verdict=verdict)
    needed = documents_needed(row, max_drop)
    amount = "More than a million" if needed is None else f"About {_rounded(needed):,}"
    return replace(row, verdict=verdict, reason=f"{amount} documents would settle it.")


def _rounded(count: int) -> int:
    """Two significant digits, rounded up."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // step) * step
