"""Error rates and power of verdicts on servers, by simulation from the logarithms of loads on."""

from __future__ import annotations

import math

import numpy as np

from moe_eval.comparison import serving_verdict
from moe_eval.comparison.speed import ratio_of_loads
from moe_eval.data.served_requests import LoadPoint
from moe_eval.records.comparison import Pair, PairSchedule
from moe_eval.records.serving import ServingLimits
from moe_eval.records.serving_comparison import PointComparison, ServingComparison, ServingRatios
from moe_eval.records.verdicts import Rules, Verdict
from moe_eval.stats import ERROR_RATE

RUNS, POINTS, LOADS = 300, 8, 3
MOST = ERROR_RATE + 3 * math.sqrt(ERROR_RATE / RUNS)  # three standard errors of a simulation


def decided(generator: np.random.Generator, gain: float, common: float, own: float) -> set[Verdict]:
    """The verdicts on all points of one run. Loads scatter in common at all points, and at each of its own."""
    logs = generator.normal(0, common, (2, 1, LOADS)) + generator.normal(0, own, (2, POINTS, LOADS))
    logs[1] += math.log(gain)
    schedule = PairSchedule("alternating", LOADS, 1, True)
    points = [
        PointComparison(
            f"c{1 << at}",
            LoadPoint(1 << at),
            ratios=ServingRatios(ratio_of_loads(after.tolist(), before.tolist(), "generator", schedule)),
        )
        for at, (before, after) in enumerate(zip(*logs, strict=True))
    ]
    serving = ServingComparison(tuple(points), ((), ()), ServingLimits(), LOADS)
    pair = Pair("bf16", "fp8", Verdict.OPEN, "", "", None, (), (), False, schedule, (), None, serving=serving)
    (judged,) = serving_verdict.decide([pair], Rules())
    assert judged.serving is not None
    return {point.verdict for point in judged.serving.points}


def test_equal_arms_pay_or_are_slower_at_some_point_as_rarely_as_stated() -> None:
    """Points that scatter apart err most often."""
    generator = np.random.default_rng(5)
    verdicts = [decided(generator, 1.0, 0.0, 0.01) for _ in range(RUNS)]
    for claim in (Verdict.PAYS, Verdict.SLOWER):
        assert sum(claim in run for run in verdicts) <= MOST * RUNS


def test_a_fifth_more_is_found_at_every_point() -> None:
    generator = np.random.default_rng(6)
    verdicts = [decided(generator, 1.2, 0.005, 0.005) for _ in range(50)]
    assert sum(run == {Verdict.PAYS} for run in verdicts) >= 48
