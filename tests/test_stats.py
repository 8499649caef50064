"""Statistics of two arms, against closed forms, scipy, the delta method and simulations of a known truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from moe_eval import stats
from moe_eval.errors import UsageError
from moe_eval.stats import Estimate

Array = npt.NDArray[Any]

DOCUMENTS = 62  # as many as WikiText-2's test split has
DRAWS = 1000


def lengths(generator: np.random.Generator, documents: int = DOCUMENTS) -> Array:
    return np.maximum(2, generator.lognormal(4.5, 0.5, documents)).astype(int)


def correlated(generator: np.random.Generator, size: int, scale: float) -> Array:
    """Noise of which half the variance is its whole document's and half an autoregressive one along the tokens."""
    steps = generator.normal(0, scale * math.sqrt(0.5 * (1 - 0.6**2)), size)
    # y[t] = 0.6 y[t-1] + steps[t], its weights below 1e-13 left out
    walk = np.convolve(steps, 0.6 ** np.arange(60))[:size]
    return generator.normal(0, scale * math.sqrt(0.5)) + walk


def pairs(seed: int, ratio: float, sizes: Array, scale: float = 0.1) -> tuple[list[Array], list[Array]]:
    """Two arms that agree on what is hard, the second worse by `ratio` nats a token in expectation."""
    generator = np.random.default_rng(seed)
    reference = [-3 + correlated(generator, int(size), 2.0) for size in sizes]
    arm = [document - ratio + correlated(generator, len(document), scale) for document in reference]
    return reference, arm


def test_the_interval_holds_the_known_ratio_in_95_percent_of_draws() -> None:
    """Documents of unequal length whose tokens hang together; the draws of one process are cached by their number."""
    held = {0.0: 0, 0.01: 0}
    for draw in range(DRAWS):
        generator = np.random.default_rng([draw, 500])
        sizes = lengths(generator)
        reference = [np.zeros(size) for size in sizes]
        noise = [correlated(generator, int(size), 0.1) for size in sizes]
        for ratio in held:
            estimate = stats.ln_ratio(reference, [document - ratio for document in noise])
            held[ratio] += estimate.low <= ratio <= estimate.high
    assert all(0.93 <= count / DRAWS <= 0.97 for count in held.values())


@pytest.mark.parametrize("documents", [5, 12])
def test_the_interval_is_honest_with_few_documents(documents: int) -> None:
    held = 0
    for draw in range(DRAWS):
        generator = np.random.default_rng([draw, documents])
        arm = [np.full(200, generator.normal(0, 0.1)) for _ in range(documents)]
        estimate = stats.ln_ratio([np.zeros(200)] * documents, arm)
        held += estimate.low <= 0 <= estimate.high
    assert 0.93 <= held / DRAWS <= 0.97


def test_the_paired_interval_is_ten_times_narrower_than_the_unpaired() -> None:
    for seed in range(5):
        reference, arm = pairs(seed, 0.01, lengths(np.random.default_rng(seed)))
        paired = stats.ln_ratio(reference, arm)
        certain = [np.zeros(len(document)) for document in reference]
        alone, reference_alone = stats.ln_ratio(certain, arm), stats.ln_ratio(certain, reference)
        assert math.hypot(alone.error, reference_alone.error) >= 10 * paired.error
        assert alone.value - reference_alone.value == pytest.approx(paired.value)


def test_the_error_is_that_of_the_delta_method_and_of_a_jackknife_by_a_loop() -> None:
    """Delete-one by a loop, and the delta method, which it comes near to."""
    sizes = lengths(np.random.default_rng(3))
    reference, arm = pairs(3, 0.02, sizes)
    sums = np.array([float((a - b).sum()) for a, b in zip(reference, arm, strict=True)])
    ratio = sums.sum() / sizes.sum()
    residuals = sums - ratio * sizes
    delta = math.sqrt((residuals**2).sum() * DOCUMENTS / (DOCUMENTS - 1)) / sizes.sum()
    without = [np.delete(sums, at).sum() / np.delete(sizes, at).sum() for at in range(DOCUMENTS)]
    jackknife = math.sqrt((DOCUMENTS - 1) / DOCUMENTS * sum((value - np.mean(without)) ** 2 for value in without))

    estimate = stats.ln_ratio(reference, arm)
    assert estimate.value == pytest.approx(ratio, rel=1e-12)
    assert estimate.error == pytest.approx(jackknife, rel=1e-9)
    assert estimate.error == pytest.approx(delta, rel=0.05)
    assert estimate.df == pytest.approx(sizes.sum() ** 2 / (sizes.astype(float) ** 2).sum() - 1)
    reach = scipy_stats.t.interval(0.95, estimate.df, loc=estimate.value, scale=estimate.error)
    assert (estimate.low, estimate.high) == pytest.approx(reach)


@pytest.mark.parametrize("documents", [14, 24])
def test_the_interval_is_honest_where_few_documents_are_long(documents: int) -> None:
    """Lengths that differ by more than WikiText's, the whole of a document better or worse."""
    held = 0
    for draw in range(DRAWS):
        generator = np.random.default_rng([draw, documents, 7])
        sizes = np.maximum(2, generator.lognormal(5, 0.8, documents))
        held += abs((estimate := stats.ratio_of_sums(sizes * generator.normal(0, 1, documents), sizes)).value) <= (
            estimate.high - estimate.value
        )
    assert 0.93 <= held / DRAWS <= 0.97


def test_documents_of_one_length_have_the_error_of_their_mean() -> None:
    generator = np.random.default_rng(4)
    means = generator.normal(0.03, 0.1, 40)
    estimate = stats.ln_ratio([np.zeros(7)] * 40, [np.full(7, -mean) for mean in means])
    assert estimate.value == pytest.approx(means.mean())
    assert estimate.error == pytest.approx(scipy_stats.sem(means))
    assert estimate.df == pytest.approx(39)
    interval = scipy_stats.ttest_1samp(means, 0).confidence_interval()
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high))


def test_a_ratio_turns_its_sign_with_the_arms() -> None:
    reference, arm = pairs(5, 0.1, lengths(np.random.default_rng(5)))
    estimate, back = stats.ln_ratio(reference, arm), stats.ln_ratio(arm, reference)
    assert (back.value, back.low, back.high) == pytest.approx((-estimate.value, -estimate.high, -estimate.low))
    same = stats.ln_ratio(reference, reference)
    assert (same.value, same.error, same.low, same.high) == (0, 0, 0, 0)


def test_an_arm_worse_by_a_constant_has_that_ratio_and_no_error() -> None:
    reference = [np.full(size, -2.0, np.float32) for size in (10, 5, 30)]
    estimate = stats.ln_ratio(reference, [document - np.float32(0.25) for document in reference])
    assert estimate.value == estimate.low == estimate.high == 0.25
    assert estimate.error == 0


@pytest.mark.parametrize("vocabulary", [2, 50, 151_936])
def test_a_uniform_guess_has_the_perplexity_of_its_vocabulary(vocabulary: int) -> None:
    logprobs = [np.full(size, -math.log(vocabulary), np.float32) for size in (3, 1, 200)]
    assert stats.perplexity(logprobs) == pytest.approx(vocabulary, rel=1e-5)
    assert stats.perplexity(logprobs, units=102) == pytest.approx(vocabulary**2, rel=1e-5)


@given(st.lists(st.lists(st.floats(-20, 0, width=32), max_size=5), min_size=1, max_size=5))
def test_perplexity_is_the_inverse_geometric_mean_however_tokens_are_split(parts: list[list[float]]) -> None:
    every = [value for part in parts for value in part]
    arrays = [np.array(part, np.float32) for part in parts]
    if not every:
        with pytest.raises(UsageError, match="at least one token"):
            stats.perplexity(arrays)
        return
    assert stats.perplexity(arrays) == pytest.approx(1 / scipy_stats.gmean(np.exp(np.array(every))), rel=1e-9)
    assert stats.perplexity(arrays) == pytest.approx(stats.perplexity([np.array(every, np.float32)]), rel=1e-12)


def test_many_float32_tokens_lose_nothing_in_their_sum() -> None:
    logprobs = np.full(3_000_000, -0.1, np.float32)
    assert math.log(stats.perplexity([logprobs])) == pytest.approx(float(np.float32(0.1)), rel=1e-12)


@pytest.mark.parametrize(
    ("value", "high", "noise", "flagged"),
    [
        (0.01, 0.02, None, False),
        (-0.01, 0.001, None, False),
        (-0.01, 0.0, None, False),
        (-0.01, -0.005, None, True),
        (-0.01, -0.005, 0.0, True),
        (-0.01, -0.005, 0.004, True),
        (-0.01, -0.005, 0.005, False),
        (-0.01, -0.005, 0.006, False),
    ],
)
def test_a_gain_beyond_interval_and_noise_is_flagged(
    value: float, high: float, noise: float | None, flagged: bool
) -> None:
    warning = stats.implausible_gain(Estimate(value, 0.001, 2 * value - high, high, 9), noise)
    assert (warning is not None) == flagged
    if warning is not None:
        assert warning.startswith("implausible: better than the reference by 0.01 in ln(perplexity)")
        assert ("no noise floor was measured" in warning) == (noise is None)


@pytest.mark.parametrize("documents", [0, 1])
def test_fewer_than_two_documents_have_no_interval(documents: int) -> None:
    arm = [np.array([-1.0, -2.0])] * documents
    with pytest.raises(UsageError, match=rf"at least two documents and there are {documents}\. Score more"):
        stats.ln_ratio(arm, arm)


def test_one_document_beside_scraps_has_no_interval() -> None:
    with pytest.raises(UsageError, match=r"one holds nearly all tokens\. Score more windows\."):
        stats.ratio_of_sums(np.array([1.0, 2.0]), np.array([10_000.0, 3.0]))


def test_what_cannot_be_compared_is_refused() -> None:
    for sizes in ([3], [3, 4, 5], [4, 3]):
        with pytest.raises(UsageError, match="did not score the same tokens"):
            stats.ln_ratio([np.zeros(3), np.zeros(4)], [np.zeros(size) for size in sizes])
    for logprobs, units in (([], None), ([np.zeros(0)], None), ([np.zeros(3)], 0)):
        with pytest.raises(UsageError, match="nothing to take a perplexity of"):
            stats.perplexity(logprobs, units)
