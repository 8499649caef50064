"""Two arms' scores in a task of the harness, document by document."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class TaskVerdict(str, Enum):
    """What an arm loses in a task."""

    HOLDS = "holds"
    DROPS = "drops"
    OPEN = "open"
    NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class Flips:
    """Documents whose answer turned from right to wrong (`losses`), and from wrong to right (`gains`).

    `p_value`: of McNemar's exact test, two-sided.
    """

    losses: int
    gains: int
    p_value: float


@dataclass(frozen=True)
class TaskComparison:
    """An arm against the reference in one metric of a task or a group.

    Attributes:
        metric: METRIC,FILTER. `is_deciding`: whether it is the task's first metric, which alone has a verdict.
        group: that the task is a part of. None where the task stands for itself.
        is_group: whether the row is a group's own.
        documents: that both arms answered.
        reference, other: the scores, over all repeats.
        difference: other - reference in the metric, ln(other / reference) where `is_logarithm`. `low` and `high` are
            its 95 % interval over documents. None where there is none.
        error, df: of Student's t that the interval is of. None where it is Tango's, of `flips`.
        is_share: whether all scores lie from 0 to 1.
        flips: of scores that are 0 or 1. None for others and for repeats.
        recovery: share of the reference's score that is left, 1 for all. None where that says nothing.
        reason: what would settle an open verdict, or why there is none.
    """

    task: str
    metric: str
    is_deciding: bool
    group: str | None
    is_group: bool
    higher_is_better: bool | None
    documents: int
    reference: float | None
    other: float | None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    error: float | None = None
    df: float | None = None
    is_logarithm: bool = False
    is_share: bool = False
    flips: Flips | None = None
    recovery: float | None = None
    verdict: TaskVerdict = TaskVerdict.NOT_JUDGED
    reason: str = ""

    @property
    def gain(self) -> tuple[float, float, float] | None:
        """The difference and its interval, positive where the arm is better. None without an interval."""
        if self.difference is None or self.low is None or self.high is None or self.higher_is_better is None:
            return None
        if self.higher_is_better:
            return self.difference, self.low, self.high
        return -self.difference, -self.high, -self.low
