"""The divergence of two arms by their top tokens, against scipy, loops and distributions over whole vocabularies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats

from moe_eval.errors import UsageError
from moe_eval.evaluators import divergence
from moe_eval.stats import Divergence, ratio_of_sums

Array = npt.NDArray[Any]


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


def scored(reference: Array, arm: Array, k: int, documents: list[int] | None = None) -> Divergence:
    """By the arm's log-probabilities of the reference's tokens."""
    ids, logprobs = top(reference, k)
    of_ids = np.take_along_axis(arm, ids, axis=1)
    documents = documents or [len(ids)]
    return divergence.between(ids, logprobs, *top(arm, k), documents=documents, of_reference_ids=of_ids)


def capped(reference: Array, arm: Array, k: int) -> Divergence:
    """By the top tokens of both."""
    return divergence.between(*top(reference, k), *top(arm, k), documents=[len(reference)])


def full(reference: Array, arm: Array) -> Array:
    return np.asarray(scipy_stats.entropy(np.exp(reference), np.exp(arm), axis=1))


@pytest.mark.parametrize("way", [scored, capped])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_over_the_whole_vocabulary_it_is_scipys_entropy(dtype: type, way: Any) -> None:
    reference, arm = arms(6, 200, 40, 0.3)
    result = way(reference.astype(dtype), arm.astype(dtype), 40)
    expected, near = full(reference, arm), 1e-9 if dtype is np.float64 else 1e-5
    assert result.mean == pytest.approx(expected.mean(), abs=near)
    assert result.median == pytest.approx(np.median(expected), abs=near)
    assert result.p99 == pytest.approx(np.percentile(expected, 99), abs=near)
    assert (result.k, result.covered) == (40, pytest.approx(1, abs=1e-6))
    assert result.same_top1 == (reference.argmax(1) == arm.argmax(1)).mean()


@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_tail_is_one_bucket(k: int) -> None:
    """The same by loops: the reference's top tokens one by one, the rest of either arm together."""
    reference, arm = arms(7, 60, 25, 1.0)
    expected, covered = [], []
    for row, ids in enumerate(top(reference, k)[0]):
        p, q = np.exp(reference[row, ids]), np.exp(arm[row, ids])
        expected.append(scipy_stats.entropy([*p, 1 - p.sum()], [*q, 1 - q.sum()]))
        covered.append(p.sum())
    result = scored(reference, arm, k)
    assert result.mean == pytest.approx(np.mean(expected), abs=1e-9)
    assert result.median == pytest.approx(np.median(expected), abs=1e-9)
    assert result.covered == pytest.approx(np.mean(covered))
    assert (result.kind, result.is_lower_bound) == ("reference ids", False)


def test_what_is_not_scored_counts_as_near_as_it_can_be() -> None:
    """The smallest divergence over all distributions that the arm's list allows, by a general optimiser."""
    reference, arm = arms(3, 12, 20, 2.5)
    k = 5
    (ids, logprobs), (arm_ids, arm_logprobs) = top(reference, k), top(arm, k)
    expected = []
    for row in range(len(ids)):
        listed = dict(zip(arm_ids[row].tolist(), np.exp(arm_logprobs[row]), strict=True))
        p = np.exp(logprobs[row])
        known = np.array([listed.get(token, np.nan) for token in ids[row].tolist()])
        hidden, cap = np.isnan(known), min(listed.values())

        def nats(q_hidden: Array, p: Array = p, known: Array = known, hidden: Array = hidden) -> float:
            q = known.copy()
            q[hidden] = q_hidden
            rest = 1 - q.sum()
            if rest <= 0:
                return 1e9
            return float((p * np.log(p / q)).sum() + (1 - p.sum()) * np.log((1 - p.sum()) / rest))

        count = int(hidden.sum())
        start = np.full(count, min(cap, 0.5 * (1 - np.nansum(known)) / max(count, 1)) / 2)
        if count:
            best = optimize.minimize(nats, start, bounds=[(1e-12, cap)] * count, method="L-BFGS-B", tol=1e-14)
            expected.append(best.fun)
        else:
            expected.append(nats(np.empty(0)))
    assert capped(reference, arm, k).mean == pytest.approx(np.mean(expected), abs=1e-5)


@settings(max_examples=150)
@given(st.integers(0, 10**6), st.integers(2, 30), st.floats(0, 5), st.floats(0, 6))
def test_it_is_never_above_that_over_the_whole_vocabulary(
    seed: int, vocabulary: int, distance: float, scale: float
) -> None:
    reference, arm = arms(seed, 3, vocabulary, distance, scale)
    whole = float((np.exp(reference) * (reference - arm)).sum(axis=1).mean())
    for k in range(1, vocabulary + 1):
        exact, bound = scored(reference, arm, k).mean, capped(reference, arm, k).mean
        assert 0 <= bound <= exact + 1e-5
        assert exact <= whole + 1e-5


def test_capped_is_a_lower_bound_and_says_so() -> None:
    result = capped(*arms(7, 60, 25, 1.0), 3)
    assert (result.kind, result.is_lower_bound) == ("capped", True)


@pytest.mark.parametrize("way", [scored, capped])
def test_an_arm_does_not_diverge_from_itself(way: Any) -> None:
    reference, _ = arms(9, 30, 100, 0)
    result = way(reference, reference.copy(), 5)
    assert (result.mean, result.median, result.p99) == pytest.approx((0, 0, 0), abs=1e-12)
    assert result.same_top1 == 1
    assert result.covered == pytest.approx(np.exp(top(reference, 5)[1]).sum(axis=1).mean())


def test_lists_with_nothing_in_common_are_far_apart() -> None:
    """16 tokens that hold nearly everything, and 16 others: 0 before the cap, and ln(1 / 1e-7) in full."""
    sure, tail = np.log(np.full(16, (1 - 1e-6) / 16)), np.log(np.full(984, 1e-6 / 984))
    reference, arm = np.concatenate([sure, tail])[None], np.concatenate([tail, sure])[None]
    assert scored(reference, arm, 16).mean == pytest.approx(full(reference, arm)[0], rel=0.01)
    assert full(reference, arm)[0] > 15
    falling = np.log(0.5) * np.arange(1, 21)  # as models have it: most of what they list is nearly nothing
    ids = np.arange(20)[None]
    bound = divergence.between(ids, falling[None], ids + 20, falling[None], documents=[1])
    assert bound.mean > 3
    assert bound.same_top1 == 0


def test_tokens_of_equal_probability_count_by_the_order_that_the_arms_give() -> None:
    half = np.full((1, 2), math.log(0.5))
    result = divergence.between(np.array([[0, 1]]), half, np.array([[1, 0]]), half, documents=[1])
    assert result.mean == pytest.approx(0, abs=1e-12)
    assert (result.covered, result.same_top1) == (pytest.approx(1), 0)


def test_a_certain_arm_against_a_certain_arm_is_finite() -> None:
    sure, other = np.zeros((2, 1), np.float32), np.full((2, 1), -30, np.float32)
    ids = np.zeros((2, 1), int)
    assert divergence.between(ids, sure, ids, other, documents=[2]).mean == pytest.approx(30, abs=1e-4)
    for of_ids in (None, np.full((2, 1), -2000, np.float32)):
        result = divergence.between(ids + 1, sure, ids, sure, documents=[2], of_reference_ids=of_ids)
        assert math.isfinite(result.mean)


def test_positions_beyond_one_step_are_all_counted() -> None:
    """With k = 2048 four positions go into one step; seven positions make two."""
    reference, arm = arms(10, 7, 2048, 0.2)
    for way in (scored, capped):
        assert way(reference, arm, 2048).mean == pytest.approx(full(reference, arm).mean(), rel=1e-6)


def test_intervals_are_those_over_documents() -> None:
    documents = [40, 60, 100, 30, 70]
    reference, arm = arms(11, sum(documents), 30, 0.5)
    result = scored(reference, arm, 30, documents)
    starts, weights = np.cumsum([0, *documents[:-1]]), np.array(documents, float)
    same = (reference.argmax(1) == arm.argmax(1)).astype(float)
    for estimate, values in ((result.kld, full(reference, arm)), (result.top1, same)):
        expected = ratio_of_sums(np.add.reduceat(values, starts), weights)
        assert estimate is not None
        assert (estimate.value, estimate.error, estimate.df) == pytest.approx(
            (expected.value, expected.error, expected.df), rel=1e-6
        )
        assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), rel=1e-5)
    assert (result.kld.value, result.top1.value) == pytest.approx((result.mean, result.same_top1))


def test_intervals_stay_where_the_figures_can_be() -> None:
    """Two documents of which one agrees nowhere: Student's interval alone reaches far beyond 0 and 1."""
    reference, _ = arms(12, 20, 10, 0)
    arm = reference.copy()
    arm[:10] = arm[:10, ::-1]
    result = scored(reference, arm, 10, [10, 10])
    assert (result.top1.low, result.top1.high) == (0, 1)
    assert result.kld.low == 0
    assert scored(reference, arm, 10).kld is scored(reference, arm, 10).top1 is None, "one document has no interval"


def test_what_cannot_be_compared_is_refused() -> None:
    for reference, arm, documents in (
        ((0, 4), (0, 4), [0]),
        ((3, 0), (3, 0), [3]),
        ((3, 4), (2, 4), [3]),
        ((3, 4), (3, 5), [3]),
        ((3, 4), (3, 4), [2]),
    ):
        with pytest.raises(UsageError, match="same positions and as many top tokens"):
            divergence.between(
                np.zeros(reference, int), np.zeros(reference), np.zeros(arm, int), np.zeros(arm), documents=documents
            )
