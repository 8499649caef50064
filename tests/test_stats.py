"""Statistics of two arms, against closed forms, scipy, the delta method and distributions over whole vocabularies."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
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


def top(logprobs: Array, k: int) -> tuple[Array, Array]:
    """The k most probable tokens, of equal ones the lowest id first."""
    ids = np.argsort(-logprobs, axis=1, kind="stable")[:, :k]
    return ids, np.take_along_axis(logprobs, ids, axis=1)


def arms(seed: int, positions: int, vocabulary: int, distance: float, scale: float = 2.0) -> tuple[Array, Array]:
    """Log-probabilities over a whole vocabulary, the second arm's logits away from the first's by `distance`."""
    generator = np.random.default_rng(seed)
    reference_logits = generator.normal(0, scale, (positions, vocabulary))
    arm_logits = reference_logits + generator.normal(0, distance, reference_logits.shape)
    return tuple(
        logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) for logits in (reference_logits, arm_logits)
    )  # type: ignore[return-value]


def compared(reference: Array, arm: Array, k: int) -> stats.Divergence:
    return stats.divergence(*top(reference, k), *top(arm, k))


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


def test_the_error_is_that_of_the_delta_method_and_of_scipys_bootstrap() -> None:
    sizes = lengths(np.random.default_rng(3))
    reference, arm = pairs(3, 0.02, sizes)
    sums = np.array([float((a - b).sum()) for a, b in zip(reference, arm, strict=True)])
    ratio = sums.sum() / sizes.sum()
    residuals = sums - ratio * sizes
    delta = math.sqrt((residuals**2).sum() * DOCUMENTS / (DOCUMENTS - 1)) / sizes.sum()

    drawn = scipy_stats.bootstrap(
        (sums, sizes),
        lambda a, b, axis: a.sum(axis=axis) / b.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=5000,
        method="percentile",
        rng=np.random.default_rng(1),
    )
    estimate = stats.ln_ratio(reference, arm)
    assert estimate.value == pytest.approx(ratio, rel=1e-12)
    assert estimate.error == pytest.approx(delta, rel=0.05)
    assert estimate.error == pytest.approx(drawn.standard_error * math.sqrt(DOCUMENTS / (DOCUMENTS - 1)), rel=0.05)
    reach = scipy_stats.t.interval(0.95, DOCUMENTS - 1, loc=estimate.value, scale=estimate.error)
    assert (estimate.low, estimate.high) == pytest.approx(reach)


def test_documents_of_one_length_have_the_error_of_their_mean() -> None:
    generator = np.random.default_rng(4)
    means = generator.normal(0.03, 0.1, 40)
    estimate = stats.ln_ratio([np.zeros(7)] * 40, [np.full(7, -mean) for mean in means])
    assert estimate.value == pytest.approx(means.mean())
    assert estimate.error == pytest.approx(scipy_stats.sem(means), rel=0.03)


def test_a_ratio_is_reproducible_and_turns_its_sign_with_the_arms() -> None:
    reference, arm = pairs(5, 0.1, lengths(np.random.default_rng(5)))
    estimate, back = stats.ln_ratio(reference, arm, seed=2), stats.ln_ratio(arm, reference, seed=2)
    assert estimate == stats.ln_ratio(reference, arm, seed=2) != stats.ln_ratio(reference, arm, seed=3)
    assert (back.value, back.low, back.high) == pytest.approx((-estimate.value, -estimate.high, -estimate.low))
    assert stats.ln_ratio(reference, reference) == Estimate(0, 0, 0, 0)


def test_an_arm_worse_by_a_constant_has_that_ratio_and_no_error() -> None:
    reference = [np.full(size, -2.0, np.float32) for size in (1, 5, 30)]
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


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_divergence_over_the_whole_vocabulary_is_scipys_entropy(dtype: type) -> None:
    reference, arm = arms(6, 200, 40, 0.3)
    result = compared(reference.astype(dtype), arm.astype(dtype), 40)
    full = scipy_stats.entropy(np.exp(reference), np.exp(arm), axis=1)
    near = 1e-9 if dtype is np.float64 else 1e-5
    assert result.mean == pytest.approx(full.mean(), abs=near)
    assert result.median == pytest.approx(np.median(full), abs=near)
    assert result.p99 == pytest.approx(np.percentile(full, 99), abs=near)
    assert (result.k, result.covered) == (40, pytest.approx(1, abs=1e-6))
    assert result.same_top1 == (reference.argmax(1) == arm.argmax(1)).mean()


@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_tail_is_one_bucket(k: int) -> None:
    """The same by loops: tokens in both tops one by one, the rest of either arm together."""
    reference, arm = arms(7, 60, 25, 1.0)
    ids, others = top(reference, k)[0], top(arm, k)[0]
    expected, covered = [], []
    for row, (reference_ids, arm_ids) in enumerate(zip(ids, others, strict=True)):
        shared = sorted(set(reference_ids) & set(arm_ids))
        p, q = np.exp(reference[row, shared]), np.exp(arm[row, shared])
        expected.append(scipy_stats.entropy([*p, 1 - p.sum()], [*q, 1 - q.sum()]))
        covered.append(p.sum())
    result = compared(reference, arm, k)
    assert result.mean == pytest.approx(np.mean(expected), abs=1e-9)
    assert result.median == pytest.approx(np.median(expected), abs=1e-9)
    assert result.covered == pytest.approx(np.mean(covered))


@settings(max_examples=150)
@given(st.integers(0, 10**6), st.integers(2, 30), st.floats(0, 5), st.floats(0, 6))
def test_the_divergence_is_a_lower_bound_that_rises_with_k(
    seed: int, vocabulary: int, distance: float, scale: float
) -> None:
    reference, arm = arms(seed, 3, vocabulary, distance, scale)
    full = float((np.exp(reference) * (reference - arm)).sum(axis=1).mean())
    means = [compared(reference, arm, k).mean for k in range(1, vocabulary + 1)]
    assert all(0 <= value <= full + 1e-6 for value in means)
    # a tail under the floor of 1e-7 counts as more than there is, and so shows nothing
    held = [np.cumsum(np.exp(np.sort(logprobs, axis=1)[:, ::-1]), axis=1).max(axis=0) for logprobs in (reference, arm)]
    above = int((np.maximum(*held) < 1 - 1e-4).sum())
    assert all(later >= earlier - 1e-6 for earlier, later in pairwise(means[:above]))
    covered = [compared(reference, arm, k).covered for k in range(1, vocabulary + 1)]
    assert covered == sorted(covered) or np.allclose(covered, sorted(covered))


def test_the_order_of_tokens_does_not_matter_for_the_divergence() -> None:
    reference, arm = arms(8, 50, 30, 0.5)
    (ids, logprobs), others = top(reference, 8), top(arm, 8)
    turned = np.random.default_rng(0).permuted(np.tile(np.arange(8), (50, 1)), axis=1)
    mixed = stats.divergence(np.take_along_axis(ids, turned, 1), np.take_along_axis(logprobs, turned, 1), *others)
    assert mixed.mean == pytest.approx(compared(reference, arm, 8).mean, rel=1e-9)


def test_an_arm_does_not_diverge_from_itself() -> None:
    reference, _ = arms(9, 30, 100, 0)
    result = compared(reference, reference.copy(), 5)
    assert (result.mean, result.median, result.p99, result.same_top1) == (0, 0, 0, 1)
    assert result.covered == pytest.approx(np.exp(top(reference, 5)[1]).sum(axis=1).mean())


def test_tops_with_nothing_in_common_cover_nothing_and_say_nothing() -> None:
    half = np.full((4, 1), math.log(0.5))
    result = stats.divergence(np.zeros((4, 1), int), half, np.ones((4, 1), int), half)
    assert (result.mean, result.covered, result.same_top1) == (0, 0, 0)


def test_tokens_of_equal_probability_count_by_the_order_that_the_arms_give() -> None:
    half = np.full((1, 2), math.log(0.5))
    result = stats.divergence(np.array([[0, 1]]), half, np.array([[1, 0]]), half)
    assert result.mean == pytest.approx(0, abs=1e-12)
    assert (result.covered, result.same_top1) == (pytest.approx(1), 0)


def test_a_certain_arm_against_a_certain_arm_is_finite() -> None:
    sure = np.zeros((2, 1), np.float32)
    result = stats.divergence(np.zeros((2, 1), int), sure, np.zeros((2, 1), int), np.full((2, 1), -30, np.float32))
    assert result.mean == pytest.approx(30, abs=1e-4)
    assert math.isfinite(stats.divergence(np.ones((2, 1), int), sure, np.zeros((2, 1), int), sure).mean)


def test_positions_beyond_one_step_are_all_counted() -> None:
    """With k = 2048 four positions go into one step; seven positions make two."""
    reference, arm = arms(10, 7, 2048, 0.2)
    full = scipy_stats.entropy(np.exp(reference), np.exp(arm), axis=1)
    assert compared(reference, arm, 2048).mean == pytest.approx(full.mean(), rel=1e-6)


@pytest.mark.parametrize(
    ("value", "high", "noise", "flagged"),
    [
        (0.01, 0.02, None, False),
        (-0.01, 0.001, None, False),
        (-0.01, 0.0, None, False),
        (-0.01, -0.005, None, True),
        (-0.01, -0.005, 0.0, True),
        (-0.01, -0.005, 0.004, True),
        (-0.01, -0.005, -0.004, True),
        (-0.01, -0.005, 0.005, False),
        (-0.01, -0.005, 0.006, False),
        (-0.01, -0.005, -0.006, False),
    ],
)
def test_a_gain_beyond_interval_and_noise_is_flagged(
    value: float, high: float, noise: float | None, flagged: bool
) -> None:
    warning = stats.implausible_gain(Estimate(value, 0.001, 2 * value - high, high), noise)
    assert (warning is not None) == flagged
    if warning is not None:
        assert warning.startswith("implausible: better than the reference by 0.01 in ln(perplexity)")
        assert ("no noise floor was measured" in warning) == (noise is None)


@pytest.mark.parametrize("documents", [0, 1])
def test_fewer_than_two_documents_have_no_interval(documents: int) -> None:
    arm = [np.array([-1.0, -2.0])] * documents
    with pytest.raises(UsageError, match=rf"at least two documents and there are {documents}\. Score more"):
        stats.ln_ratio(arm, arm)


def test_what_cannot_be_compared_is_refused() -> None:
    for sizes in ([3], [3, 4, 5], [4, 3]):
        with pytest.raises(UsageError, match="did not score the same tokens"):
            stats.ln_ratio([np.zeros(3), np.zeros(4)], [np.zeros(size) for size in sizes])
    for reference, arm in (((0, 4), (0, 4)), ((3, 0), (3, 0)), ((3, 4), (2, 4)), ((3, 4), (3, 5))):
        with pytest.raises(UsageError, match="same positions and as many top tokens"):
            stats.divergence(np.zeros(reference, int), np.zeros(reference), np.zeros(arm, int), np.zeros(arm))
    for logprobs, units in (([], None), ([np.zeros(0)], None), ([np.zeros(3)], 0)):
        with pytest.raises(UsageError, match="nothing to take a perplexity of"):
            stats.perplexity(logprobs, units)
