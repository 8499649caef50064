"""Statistics of times: exact coverage, a run whose clock drifts, and intervals by load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as distributions

from moe_eval import stats
from moe_eval.errors import UsageError
from moe_eval.stats import Estimate

DRAWS = 1000
TRUTH = 1.4


@pytest.mark.parametrize("n", range(6, 13))
def test_the_median_interval_covers_as_exhaustive_enumeration_says(n: int) -> None:
    """Every sample is below or above the median with the same chance: count all 2^n ways."""
    low, high = stats.median_interval(range(n)) or (-1, -1)
    covered = sum(low + 1 <= sum(below) <= high for below in product((0, 1), repeat=n))
    assert covered / 2**n >= 0.95
    narrower = sum(low + 2 <= sum(below) <= high - 1 for below in product((0, 1), repeat=n))
    assert narrower / 2**n < 0.95


def test_five_samples_bound_no_median() -> None:
    assert stats.median_interval([1, 2, 3, 4, 5]) is None
    assert stats.median_interval([6, 5, 4, 3, 2, 1]) == (1, 6)


def drifting(generator: np.random.Generator, order: list[str]) -> dict[str, list[float]]:
    """Seconds of both arms in this order while the clock falls by 3 % over the run; b is TRUTH times as fast as a."""
    run: dict[str, list[float]] = {"a": [], "b": []}
    for index, arm in enumerate(order):
        clock = 1 - 0.03 * index / (len(order) - 1)
        seconds = (TRUTH if arm == "a" else 1.0) / clock * math.exp(generator.normal(0, 0.004))
        run[arm].append(seconds)
    return run


def coverage(order: list[str]) -> float:
    """How often the interval over pairs of loads, of four iterations each, holds the truth."""
    generator = np.random.default_rng(7)
    inside = 0
    for _ in range(DRAWS):
        run = drifting(generator, order)
        medians = [np.median(np.array(run[arm]).reshape(-1, 4), axis=1) for arm in "ab"]
        ratio = stats.mean_interval(list(np.log(medians[0] / medians[1])))
        inside += ratio.low <= math.log(TRUTH) <= ratio.high
    return inside / DRAWS


def test_arms_that_take_turns_are_right_where_the_clock_drifts_and_others_are_not() -> None:
    assert abs(coverage(["a", "b", "b", "a"] * 10) - 0.95) <= 0.02
    assert coverage(["a"] * 20 + ["b"] * 20) < 0.05


VALUES = st.lists(st.floats(-5, 5).map(lambda value: round(value, 3)), min_size=2, max_size=12)


@settings(max_examples=50, deadline=None)
@given(VALUES.filter(lambda values: len(set(values)) > 1), st.sampled_from([0.9, 0.95, 0.999]))
def test_the_interval_of_a_mean_is_that_of_the_t_test_of_one_sample(values: list[float], confidence: float) -> None:
    estimate = stats.mean_interval(values, confidence)
    oracle = distributions.ttest_1samp(values, 0.0)
    low, high = oracle.confidence_interval(confidence)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((np.mean(values), low, high), abs=1e-9)
    assert (estimate.df, estimate.error) == (len(values) - 1, pytest.approx(distributions.sem(values)))


@settings(max_examples=50, deadline=None)
@given(VALUES.filter(lambda values: len(set(values)) > 1), VALUES, st.sampled_from([0.9, 0.95, 0.999]))
def test_the_interval_of_a_difference_is_that_of_welch(
    first: list[float], second: list[float], confidence: float
) -> None:
    estimate = stats.difference_interval(first, second, confidence)
    oracle = distributions.ttest_ind(first, second, equal_var=False)
    low, high = oracle.confidence_interval(confidence)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=1e-9)
    assert estimate.df == pytest.approx(oracle.df)
    swapped = stats.difference_interval(second, first, confidence)
    assert (swapped.low, swapped.high) == pytest.approx((-estimate.high, -estimate.low), abs=1e-9)


def test_values_that_do_not_scatter_have_an_interval_without_width() -> None:
    assert stats.mean_interval([0.25] * 4) == Estimate(0.25, 0.0, 0.25, 0.25, 3)
    assert stats.difference_interval([0.75] * 4, [0.5] * 3) == Estimate(0.25, 0.0, 0.25, 0.25, 2)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_fewer_than_two_loads_have_no_interval(values: list[float]) -> None:
    sentence = rf"An interval needs at least two loads and there are {len(values)}\. Give more --loads\."
    with pytest.raises(UsageError, match=sentence):
        stats.mean_interval(values)
    for first, second in ((values, [1.0, 2.0]), ([1.0, 2.0], values)):
        with pytest.raises(UsageError, match=sentence):
            stats.difference_interval(first, second)


@pytest.mark.parametrize("count", [2, 3, 4, 10, 64])
def test_the_reach_is_half_the_width_in_standard_deviations(count: int) -> None:
    values = np.random.default_rng(count).normal(3, 2, count)
    low, high = distributions.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert stats.reach(count) == pytest.approx((high - low) / 2 / values.std(ddof=1))


@pytest.mark.parametrize("bound", [-1.0, 0.0, 0.02, 0.05])
def test_the_chance_above_a_bound_is_that_of_the_one_sided_t_test(bound: float) -> None:
    values = [0.01, 0.03, 0.045, 0.02]
    estimate = stats.mean_interval(values)
    oracle = distributions.ttest_1samp(values, bound, alternative="greater").pvalue
    assert stats.p_above(estimate.value, estimate.error, estimate.df, bound) == pytest.approx(oracle)


def test_what_does_not_scatter_is_above_a_bound_or_is_not() -> None:
    assert [stats.p_above(value, 0.0, 3, 0.01) for value in (0.02, 0.01, 0.0)] == [0.0, 1.0, 1.0]


def closed(p_values: Sequence[float], level: float) -> list[bool]:
    """Holm's procedure by its definition as a closed test: a hypothesis is rejected where every set that holds it is.

    A set of k is rejected where its least p-value is at most level / k (Marcus, Peritz and Gabriel, 1976).
    """
    indices = range(len(p_values))
    sets = [subset for size in range(1, len(p_values) + 1) for subset in combinations(indices, size)]
    kept = [subset for subset in sets if min(p_values[index] for index in subset) > level / len(subset)]
    return [all(index not in subset for subset in kept) for index in indices]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.floats(0, 0.1), st.sampled_from([0.0, 0.005, 0.01, 0.025, 1.0])), max_size=6))
def test_holm_rejects_what_the_closed_test_rejects(p_values: list[float]) -> None:
    assert stats.holm(p_values, 0.025) == closed(p_values, 0.025)


@pytest.mark.parametrize("true", [1, 4, 8])
def test_holm_rejects_a_true_hypothesis_no_more_often_than_its_level(true: int) -> None:
    """Eight hypotheses of which some are false by a lot."""
    generator = np.random.default_rng(true)
    wrong = 0
    for _ in range(4000):
        p_values = [*generator.uniform(size=true), *generator.uniform(high=1e-4, size=8 - true)]
        wrong += any(stats.holm(p_values, 0.05)[:true])
    assert wrong / 4000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)


@pytest.mark.parametrize("most", [3, 4, 8, 16, 64])
def test_the_looks_of_a_run_spend_its_level_and_little_of_it_early(most: int) -> None:
    parts = [stats.look_level(loads, most, 3, 0.025) for loads in range(3, most + 1)]
    assert math.fsum(parts) == pytest.approx(0.025)
    assert min(parts) > 0
    if most >= 8:
        assert parts[0] < 0.025 / len(parts) / 4
        assert max(parts) > 0.025 / len(parts)


@pytest.mark.parametrize(
    ("loads", "level", "power"), [(3, 0.025, 0.9), (4, 0.025, 0.9), (4, 0.005, 0.5), (10, 0.025, 0.8)]
)
def test_what_is_detectable_is_seen_as_often_as_said(loads: int, level: float, power: float) -> None:
    """Pairs of loads that scatter by 1 % each, drawn with that difference."""
    scatter = 0.01
    difference = stats.detectable(loads, scatter, level, power)
    draws, generator = 20_000, np.random.default_rng(loads)
    sides = [generator.normal(mean, scatter, (draws, loads)) for mean in (difference, 0.0)]
    pairs = sides[0] - sides[1]
    seen = pairs.mean(axis=1) - distributions.t.ppf(1 - level, loads - 1) * distributions.sem(pairs, axis=1) > 0
    assert seen.mean() == pytest.approx(power, abs=0.012)


@pytest.mark.parametrize("loads", [3, 4, 8, 64])
@pytest.mark.parametrize("level", [0.025, 0.025 / 8, 0.025 / 500])
def test_what_is_detectable_is_the_shift_of_the_noncentral_t(loads: int, level: float) -> None:
    scatter, critical = 0.02, distributions.t.isf(level, loads - 1)
    shift = stats.detectable(loads, scatter, level, 0.9) / (scatter * math.sqrt(2 / loads))
    assert distributions.nct.sf(critical, loads - 1, shift) == pytest.approx(0.9)
