"""Whether timed iterations drift within a load."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy import stats as distributions

from moe_eval.frozen import frozen

LEVEL = 0.01  # of the two-sided test: one steady shape in a hundred is told to drift


@frozen
class Trend:
    """A drift that chance does not explain.

    Attributes:
        change: from the first to the last iteration of a load, relative to its median. -0.012: it fell by 1.2 %.
        p: of the test.
    """

    change: float
    p: float


def trend(loads: Sequence[Sequence[float]]) -> Trend | None:
    """Test the iterations of loads for a trend that they share. None where there is none.

    Kendall's S is summed over the loads, so that a difference between loads is no trend (the seasonal test of Hirsch,
    Slack and Smith 1982, Water Resources Research 18, 107, with a load as a season). Its variance is corrected for
    ties. The change is Theil and Sen's slope, over all pairs of iterations within a load.

    Args:
        loads: positive times of every load, in order. A load of one iteration says nothing.
    """
    score, variance = 0.0, 0.0
    slopes: list[float] = []
    steps: list[int] = []
    for load in loads:
        values, count = np.asarray(load, dtype=np.float64), len(load)
        if count < 2:
            continue
        first, second = np.triu_indices(count, 1)
        differences = values[second] - values[first]
        score += float(np.sign(differences).sum())
        variance += _variance(count) - sum(_variance(int(ties)) for ties in np.unique(values, return_counts=True)[1])
        slopes += (differences / (second - first) / np.median(values)).tolist()
        steps.append(count - 1)
    if variance <= 0:
        return None
    # S moves in steps of 2, so a continuous distribution takes 1 off
    p = 2 * float(distributions.norm.sf(max(abs(score) - 1, 0) / math.sqrt(variance)))
    return Trend(statistics.median(slopes) * statistics.fmean(steps), p) if p < LEVEL else None


def _variance(count: int) -> float:
    """The variance of Kendall's S of so many values in random order."""
    return count * (count - 1) * (2 * count + 5) / 18
