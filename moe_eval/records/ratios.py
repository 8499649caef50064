"""How much faster one arm is than another, by figure, and the figures of both."""

from __future__ import annotations

from dataclasses import dataclass

from moe_eval.records.verdicts import TIME_OF, Rules
from moe_eval.stats import CONFIDENCE


@dataclass(frozen=True)
class Ratio:
    """How much faster the other arm is: reference over other, above 1 where the other is faster.

    Attributes:
        value: the geometric mean over pairs of loads of the medians' ratio, by the clock `source`.
        low, high: its interval at `confidence`, by load. None where a side has one load.
        loads: of the side that has fewer.
        error, df: the standard error of ln(value) and the degrees of freedom of its Student's t.
        widened: the factor by which either end is farther away than by load: for what no load shows.
    """

    value: float
    low: float | None
    high: float | None
    loads: int
    source: str
    error: float | None = None
    df: float | None = None
    widened: float = 1.0
    confidence: float = CONFIDENCE


@dataclass(frozen=True)
class SpeedRatios:
    """Ratios by figure. None where a figure was not measured on both sides."""

    e2e_ms: Ratio | None = None
    ttft_ms: Ratio | None = None
    tpot_ms: Ratio | None = None
    j_per_tok: Ratio | None = None

    def deciding(self, rules: Rules) -> Ratio | None:
        """The ratio of the time that decides."""
        ratio: Ratio | None = getattr(self, TIME_OF[rules.decide_on])
        return ratio


@dataclass(frozen=True)
class Interval:
    """A median and its interval, see samples.Metric. `low` and `high` are None where there is none."""

    median: float
    low: float | None = None
    high: float | None = None
    loads: int = 1


@dataclass(frozen=True)
class Sides:
    """A figure of both arms. None where a side does not have it."""

    reference: Interval | None
    other: Interval | None
