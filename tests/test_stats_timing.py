"""Statistics of times: exact coverage, and a simulated run whose clock drifts."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_eval import stats
from moe_eval.errors import UsageError

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


def blocks(samples: list[float]) -> list[list[float]]:
    return [samples[at : at + 2] for at in range(0, len(samples), 2)]


def coverage(order: list[str]) -> float:
    generator = np.random.default_rng(7)
    inside = 0
    for _ in range(DRAWS):
        run = drifting(generator, order)
        ratio = stats.block_ratio(blocks(run["a"]), blocks(run["b"]))
        inside += ratio.low <= TRUTH <= ratio.high
    return inside / DRAWS


def test_interleaved_arms_are_right_where_the_clock_drifts_and_sequential_ones_are_not() -> None:
    assert abs(coverage(["a", "b", "b", "a"] * 10) - 0.95) <= 0.02
    assert coverage(["a"] * 20 + ["b"] * 20) < 0.05


def test_the_ratio_is_the_geometric_mean_of_the_blocks_ratios() -> None:
    ratio = stats.block_ratio([[2.0, 4.0, 9.0], [3.0]], [[1.0, 2.0, 3.0], [1.0]])
    assert ratio.value == pytest.approx(math.sqrt(2.0 * 3.0))
    assert ratio.low < ratio.value < ratio.high


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=2, max_size=8))
def test_swapping_the_arms_inverts_the_ratio(pairs: list[tuple[float, float]]) -> None:
    above, below = [[a] for a, _ in pairs], [[b] for _, b in pairs]
    ratio, inverse = stats.block_ratio(above, below), stats.block_ratio(below, above)
    assert ratio.value == pytest.approx(1 / inverse.value)
    assert ratio.low == pytest.approx(1 / inverse.high, rel=1e-6)


@pytest.mark.parametrize(
    ("above", "below", "message"),
    [([[1.0]], [[1.0]], "at least two blocks"), ([[1.0], []], [[1.0], [1.0]], "same blocks"), ([[1.0]], [], "same")],
)
def test_what_makes_no_ratio_is_refused(above: list[list[float]], below: list[list[float]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stats.block_ratio(above, below)
