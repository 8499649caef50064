"""Paired scores of 0 or 1 against scipy's exact tests, and error rates by simulation with a known truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as distributions

from moe_eval.comparison import flips
from moe_eval.stats import ERROR_RATE


@pytest.mark.parametrize(("losses", "gains"), [(0, 0), (1, 0), (5, 5), (16, 4), (2, 19), (300, 250)])
def test_mcnemar_is_the_binomial_test(losses: int, gains: int) -> None:
    oracle = distributions.binomtest(losses, losses + gains).pvalue if losses + gains else 1.0
    assert flips.mcnemar(losses, gains) == pytest.approx(oracle, rel=1e-12)


@pytest.mark.parametrize("differences", [[0, 0], [1, 1, -1, 0], [3, -1, 2, 2, -3], [2] * 9 + [-1, 1, -3], [1] * 12])
def test_clusters_have_the_exact_test_of_signs(differences: list[int]) -> None:
    signs = np.array(list(itertools.product((-1, 1), repeat=len(differences)))).reshape(-1, len(differences))
    oracle = (np.abs(signs @ np.array(differences)) >= abs(sum(differences))).mean()
    assert flips.clustered(differences) == pytest.approx(oracle)


@pytest.mark.parametrize(("losses", "gains"), [(1, 0), (16, 4), (2, 19), (300, 250)])
def test_clusters_of_one_answer_are_mcnemar_s(losses: int, gains: int) -> None:
    oracle = distributions.binomtest(losses, losses + gains).pvalue
    assert flips.clustered([-1] * losses + [1] * gains) == pytest.approx(oracle, rel=1e-9)


def test_a_share_of_clusters_is_student_s_and_never_narrower_than_chance() -> None:
    shares = np.array([0, 0, 1 / 3, 1, 0, 2 / 3] * 10)
    error = float(shares.std(ddof=1) / math.sqrt(len(shares)))
    oracle = distributions.t.interval(0.95, len(shares) - 1, shares.mean(), error)
    assert flips.clustered_share_interval(float(shares.mean()), error, len(shares)) == pytest.approx(oracle)
    p_value = flips.clustered_share_p_value(float(shares.mean()), error, len(shares), 0.2, is_above=True)
    assert p_value == pytest.approx(distributions.ttest_1samp(shares, 0.2, alternative="greater").pvalue)
    # without any flip, as with single answers: the rule of three
    assert flips.clustered_share_interval(0.0, 0.0, 100) == pytest.approx((0.0, 1 - 0.025 ** (1 / 100)))


@pytest.mark.parametrize(("count", "documents"), [(0, 10), (10, 10), (3, 50), (40, 1000)])
def test_a_share_has_the_exact_interval_and_test(count: int, documents: int) -> None:
    exact = distributions.binomtest(count, documents, 0.05).proportion_ci(0.95, "exact")
    assert flips.share_interval(count, documents) == pytest.approx((exact.low, exact.high))
    for is_above, side in ((True, "greater"), (False, "less")):
        oracle = distributions.binomtest(count, documents, 0.05, alternative=side).pvalue
        assert flips.share_p_value(count, documents, 0.05, is_above=is_above) == pytest.approx(oracle, abs=1e-12)


def test_the_interval_solves_tango_s_equation() -> None:
    """The null share of losses is the most likely one of a fine grid, and the bounds lie where the statistic does."""
    for losses, gains, documents in ((3, 2, 44), (9, 0, 50), (0, 0, 30), (16, 4, 86), (10, 0, 10)):
        grid = np.linspace(-0.9995, 0.9995, 3999)
        kept = [bound for bound in grid if abs(float(flips.score(losses, gains, documents, bound))) <= 1.959964]
        low, high = flips.interval(losses, gains, documents)
        assert low == pytest.approx(min(kept), abs=6e-4)
        assert high == pytest.approx(max(kept), abs=6e-4)
        # the null share of losses solves the likelihood equation: a grid of it is the oracle
        for bound in (-0.2, -0.01, 0.1):
            shares = np.linspace(max(0.0, -bound) + 1e-7, (1 - bound) / 2 - 1e-7, 40001)
            rest = documents - losses - gains
            with np.errstate(divide="ignore", invalid="ignore"):
                likelihood = (
                    losses * np.log(shares) + gains * np.log(shares + bound) + rest * np.log(1 - 2 * shares - bound)
                )
            share = shares[np.nanargmax(likelihood)]
            z = (gains - losses - documents * bound) / math.sqrt(documents * (2 * share + bound * (1 - bound)))
            assert float(flips.score(losses, gains, documents, bound)) == pytest.approx(z, abs=0.02)


@pytest.mark.parametrize("documents", [50, 200, 1000])
@pytest.mark.parametrize(("loss", "gain"), [(0.01, 0.0), (0.03, 0.02), (0.11, 0.10), (0.05, 0.05)])
def test_the_interval_holds_the_truth_and_both_claims_their_error(documents: int, loss: float, gain: float) -> None:
    draws = 20_000
    generator = np.random.default_rng(documents)
    counts = generator.multinomial(documents, [loss, gain, 1 - loss - gain], size=draws)
    at_truth = flips.score(counts[:, 0], counts[:, 1], documents, gain - loss)
    limit = distributions.norm.ppf(1 - ERROR_RATE)
    assert (np.abs(at_truth) <= limit).mean() > 0.94
    # "holds" at a loss of exactly what is allowed
    assert (at_truth > limit).mean() < ERROR_RATE + 3 * math.sqrt(ERROR_RATE / draws) + 0.002
