"""The trend of timed iterations, against SciPy's exact test and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as oracle

from moe_eval.evaluators import trend as module
from moe_eval.evaluators.trend import LEVEL, trend


@pytest.fixture
def every(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trends at any level."""
    monkeypatch.setattr(module, "LEVEL", 2.0)


@pytest.mark.usefixtures("every")
def test_one_load_is_tested_as_scipy_does() -> None:
    generator = np.random.default_rng(5)
    for count in (6, 10, 20, 30):
        for slope in (0.0, 0.02, 0.05):
            times = 1 - slope * np.arange(count) / count + generator.normal(0, 0.02, count)
            drift = trend([times.tolist()])
            assert drift is not None
            assert drift.p == pytest.approx(oracle.kendalltau(range(count), times, method="exact").pvalue, abs=0.012)
            slopes = oracle.theilslopes(times, range(count))
            assert drift.change == pytest.approx(slopes.slope * (count - 1) / np.median(times))


@pytest.mark.usefixtures("every")
def test_ties_are_corrected_as_scipy_does() -> None:
    times = np.random.default_rng(6).integers(10, 16, 40) + np.arange(40) // 20
    drift = trend([times.tolist()])
    score = sum(np.sign(times[at + 1 :] - times[at]).sum() for at in range(40))
    z = oracle.norm.isf(oracle.kendalltau(range(40), times, method="asymptotic").pvalue / 2)
    assert drift is not None
    assert drift.p == pytest.approx(2 * oracle.norm.sf(z * (abs(score) - 1) / abs(score))), "but for the continuity"


def steady(generator: np.random.Generator, loads: int, iterations: int) -> list[list[float]]:
    """Loads whose own levels scatter by 1 %, and iterations by 0.3 %."""
    levels = 1 + generator.normal(0, 0.01, (loads, 1))
    rows: list[list[float]] = (levels * (1 + generator.normal(0, 0.003, (loads, iterations)))).tolist()
    return rows


@pytest.mark.parametrize(("loads", "iterations"), [(1, 10), (1, 20), (4, 5), (8, 3)])
def test_steady_loads_are_told_to_drift_in_at_most_one_of_a_hundred_shapes(loads: int, iterations: int) -> None:
    generator = np.random.default_rng(7)
    alarms = sum(trend(steady(generator, loads, iterations)) is not None for _ in range(2000))
    assert 0 < alarms / 2000 <= LEVEL + 3 * (LEVEL / 2000) ** 0.5


def test_a_drift_that_all_loads_share_is_seen_with_its_size() -> None:
    generator = np.random.default_rng(8)
    slide = 1 - 0.012 * np.arange(5) / 4
    drifts = [trend([(np.array(load) * slide).tolist() for load in steady(generator, 4, 5)]) for _ in range(200)]
    changes = [drift.change for drift in drifts if drift]
    assert len(changes) > 190
    assert np.mean(changes) == pytest.approx(-0.012, rel=0.1)


def test_a_difference_between_loads_is_no_trend() -> None:
    assert trend([[1.0, 1.01, 1.0, 1.01]] * 2 + [[2.0, 2.02, 2.0, 2.02]] * 2) is None


@pytest.mark.parametrize("loads", [[], [[]], [[1.0]], [[1.0]] * 9, [[1.0, 1.0, 1.0]] * 9, [[1.0, 0.9], [1.0, 0.9]]])
def test_too_little_shows_no_trend(loads: list[list[float]]) -> None:
    assert trend(loads) is None
