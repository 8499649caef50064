"""How much faster one arm is than another, by figure, and the figures of both."""

from __future__ import annotations

from dataclasses import replace

from moe_eval.frozen import frozen
from moe_eval.records.verdicts import TIME_OF, Rules
from moe_eval.stats import CONFIDENCE


@frozen
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

    def times(self, factor: float) -> Ratio:
        """The ratio of figures of which one is so many times greater, for a reason without scatter."""
        low, high = (None if end is None else end * factor for end in (self.low, self.high))
        return replace(self, value=self.value * factor, low=low, high=high)


@frozen
class SpeedRatios:
    """Ratios by figure. None where a figure was not measured on both sides.

    Attributes:
        output_tok_s_per_gpu: None as well where both arms have as many GPUs: it is that of e2e_ms.
    """

    e2e_ms: Ratio | None = None
    ttft_ms: Ratio | None = None
    tpot_ms: Ratio | None = None
    j_per_tok: Ratio | None = None
    output_tok_s_per_gpu: Ratio | None = None

    def decided_by(self, rules: Rules) -> str:
        """The figure that decides, by its name here."""
        is_per_gpu = rules.is_per_gpu and self.output_tok_s_per_gpu is not None
        return "output_tok_s_per_gpu" if is_per_gpu else TIME_OF[rules.decide_on]

    def deciding(self, rules: Rules) -> Ratio | None:
        """The ratio of the figure that decides."""
        ratio: Ratio | None = getattr(self, self.decided_by(rules))
        return ratio

    def per_gpu(self, gpus: tuple[int, int] | None) -> SpeedRatios:
        """With the ratio of output per GPU, where the arms have other numbers of GPUs. `gpus`: the reference first."""
        if gpus is None or gpus[0] == gpus[1] or self.e2e_ms is None:
            return self
        return replace(self, output_tok_s_per_gpu=self.e2e_ms.times(gpus[0] / gpus[1]))


@frozen
class Interval:
    """A median and its interval, see samples.Metric. `low` and `high` are None where there is none."""

    median: float
    low: float | None = None
    high: float | None = None
    loads: int = 1

    def per(self, count: int) -> Interval:
        """The same of each of so many."""
        low, high = (None if end is None else end / count for end in (self.low, self.high))
        return Interval(self.median / count, low, high, self.loads)


@frozen
class Sides:
    """A figure of both arms. None where a side does not have it."""

    reference: Interval | None
    other: Interval | None
