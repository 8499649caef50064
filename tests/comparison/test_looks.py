"""A run until decided looks more than once: what every look may spend, and what it decides."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats as distributions

from moe_eval import stats
from moe_eval.comparison import verdict
from moe_eval.comparison.speed import ratio_of_loads
from moe_eval.records.verdicts import Verdict
from moe_eval.stats import ERROR_RATE, LEAST_LOADS
from tests.doubles.comparisons import RULES, TURNS


@pytest.mark.parametrize("most", [4, 8, 16, 64, 500])
def test_looks_share_the_error_rate_and_later_ones_have_more_of_it(most: int) -> None:
    parts = [stats.look_level(loads, most, LEAST_LOADS, ERROR_RATE) for loads in range(LEAST_LOADS, most + 1)]
    assert math.fsum(parts) == pytest.approx(ERROR_RATE, rel=1e-9)
    assert all(later > 0.999 * part for part, later in pairwise(parts[1:]))
    # O'Brien and Fleming's function of a one-sided level, but for a hundredth that is spent evenly
    early = 2 * distributions.norm.sf(distributions.norm.isf(ERROR_RATE / 2) / math.sqrt(LEAST_LOADS / most))
    assert parts[0] == pytest.approx(0.99 * early + 0.01 * ERROR_RATE * LEAST_LOADS / most)


@pytest.mark.parametrize("most", [24, 32, 64, 500])
def test_the_first_of_many_looks_has_an_interval_and_decides_little(most: int) -> None:
    schedule = replace(TURNS, loads=3, look=1, looks=most - LEAST_LOADS + 1)
    times = ratio_of_loads([0.0, 0.05, 0.1], [0.0] * 3, "host", schedule)
    assert times.low is not None
    assert times.high is not None
    assert 0 < times.low < times.value < times.high < math.inf
    assert verdict.of_family([times, times], RULES) == ["open", "open"]
    alike = ratio_of_loads([0.2] * 3, [0.0] * 3, "host", schedule)
    assert verdict.of_family([alike], RULES) == ["pays"]


@pytest.mark.parametrize("look", [1, 3, 6])
def test_p_values_belong_to_the_interval_of_their_look(look: int) -> None:
    """An end of the interval has a p-value of the whole error rate, though the look has a part of it alone."""
    logs = np.random.default_rng(look).normal(0.05, 0.01, look + 2).tolist()
    times = ratio_of_loads(logs, [0.0] * len(logs), "host", replace(TURNS, look=look, looks=6))
    level = stats.look_level(look + 2, 8, LEAST_LOADS, ERROR_RATE)
    assert times.confidence == pytest.approx(1 - 2 * level)
    assert times.low is not None
    assert times.high is not None
    assert verdict.p_value(times, times.low, is_above=True) == pytest.approx(ERROR_RATE)
    assert verdict.p_value(times, times.high, is_above=False) == pytest.approx(ERROR_RATE)
    by_scipy = distributions.ttest_1samp(logs, math.log(1.04), alternative="greater").pvalue
    assert verdict.p_value(times, 1.04, is_above=True) == pytest.approx(min(1.0, by_scipy * ERROR_RATE / level))
    assert verdict.p_value(times, 9.0, is_above=True) == 1


@pytest.mark.parametrize(("truth", "claim"), [(1.0, Verdict.SLOWER), (1.01, Verdict.PAYS)])
def test_looking_again_until_decided_keeps_the_error_rate(truth: float, claim: Verdict) -> None:
    generator, runs, most, false = np.random.default_rng(0), 400, 8, 0
    for _ in range(runs):
        logs = generator.normal(math.log(truth), 0.01 * math.sqrt(2), (4, most))
        for loads in range(LEAST_LOADS, most + 1):
            schedule = replace(TURNS, loads=loads, look=loads - LEAST_LOADS + 1, looks=most - LEAST_LOADS + 1)
            rulings = verdict.of_family(
                [ratio_of_loads(row[:loads].tolist(), [0.0] * loads, "host", schedule) for row in logs], RULES
            )
            if Verdict.OPEN not in rulings:
                break
        false += claim in rulings
    assert false / runs < ERROR_RATE + 3 * math.sqrt(ERROR_RATE * (1 - ERROR_RATE) / runs)
