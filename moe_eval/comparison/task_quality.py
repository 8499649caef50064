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
    runs (Holm). What stands for itself is one family, and the parts of groups are another. So are the metrics of either
    that do not decide.
    """
    table = [list(entries) for entries in pairs]
    families: dict[tuple[bool, bool], list[tuple[int, int]]] = {}
    for pair, entries in enumerate(pairs):
        for at, row in enumerate(entries):
            if row.gain is not None:
                families.setdefault((row.group is not None, row.is_deciding), []).append((pair, at))
    for family in families.values():
        rows = _judged([table[pair][at] for pair, at in family], max_drop)
        for (pair, at), row in zip(family, rows, strict=True):
            table[pair][at] = row
    return [tuple(entries) for entries in table]


def _judged(entries: Sequence[TaskComparison], max_drop: float) -> list[TaskComparison]:
    """The rows of one family with their verdicts."""
    holds = stats.holm([p_value(row, -max_drop, is_above=True) for row in entries], ERROR_RATE)
    drops = stats.holm([p_value(row, 0.0, is_above=False) for row in entries], ERROR_RATE)
    # at which Holm's procedure would decide one more
    levels = [ERROR_RATE / max(1, len(entries) - sum(decided)) for decided in (holds, drops)]
    rows = []
    for row, is_held, is_dropped in zip(entries, holds, drops, strict=True):
        _, low, high = row.gain or (0.0, -math.inf, math.inf)
        verdict = TaskVerdict.DROPS if is_dropped and high < 0 else TaskVerdict.OPEN
        verdict = TaskVerdict.HOLDS if is_held and low >= -max_drop else verdict
        reason = _settled_by(row, max_drop, levels) if verdict is TaskVerdict.OPEN else row.reason
        rows.append(replace(row, verdict=verdict, reason=reason))
    return rows


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


def documents_needed(row: TaskComparison, max_drop: float, levels: Sequence[float]) -> int | None:
    """About how many documents settle an open row, if they scatter as those there are. None for more than a million.

    The statistic against a bound grows with the root of the documents.

    Args:
        levels: of the claims that the arm holds, and that it drops.
    """
    claims = ((-max_drop, True, levels[0]), (0.0, False, levels[1]))
    needed = min(_documents_of_claim(row, *claim) for claim in claims)
    return max(row.documents + 1, math.ceil(needed)) if needed <= _MOST_DOCUMENTS else None


def _documents_of_claim(row: TaskComparison, bound: float, is_above: bool, level: float) -> float:
    """How many documents show a gain above (or below) a bound. Infinite where the gain is not there."""
    from scipy import special

    enough, sign = float(special.ndtri(1 - level)), 1 if is_above else -1
    distance = sign * ((row.gain or (0.0,))[0] - bound)
    if row.error is None:
        losses, gains = (row.flips.losses, row.flips.gains) if row.flips else (0, 0)
        statistic = sign * float(flips.score(losses, gains, row.documents, bound))
        return row.documents * (enough / statistic) ** 2 if statistic > 0 else math.inf
    if distance <= 0:
        return math.inf
    unseen = math.log(level) / math.log1p(-distance) if row.is_share and distance < 1 else 0.0
    return max(row.documents * (enough * row.error / distance) ** 2, unseen)


def _settled_by(row: TaskComparison, max_drop: float, levels: Sequence[float]) -> str:
    needed = documents_needed(row, max_drop, levels)
    amount = "More than a million" if needed is None else f"About {_rounded(needed):,}"
    available = row.split_documents
    lacking = ""
    if available and (needed is None or needed > available):
        lacking = f", and there are {available:,} in all"
    return f"{amount} documents would settle it{lacking}."


def _rounded(count: int) -> int:
    """Two significant digits, rounded up."""
    step = int(10 ** max(0, len(str(count)) - 2))
    return -(-count // step) * step
