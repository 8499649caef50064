"""Statistics of two arms that scored the same tokens: pure functions over arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, special
from scipy import stats as distributions

from moe_eval.errors import UsageError

Array = npt.NDArray[Any]

CONFIDENCE = 0.95
ERROR_RATE = (1 - CONFIDENCE) / 2  # of a claim in one direction
LEAST_LOADS = 3  # of either arm for a verdict: two leave one degree of freedom
_EVENLY = 0.01  # of the error rate of looks
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error, its interval and the degrees of freedom of Student's t."""

    value: float
    error: float
    low: float
    high: float
    df: float


@dataclass(frozen=True)
class Divergence:
    """How far one arm's distributions are from the reference's, position by position.

    Attributes:
        mean, median, p99: Kullback-Leibler divergence D(reference || arm) in nats. The tokens that both arms have
            among their `k` most probable count singly and all others as one bucket. So it is a lower bound of the
            divergence over the whole vocabulary.
        k: how many of the most probable tokens each arm gave.
        covered: mean share of the reference's probability that the single tokens hold.
        same_top1: share of positions with the same most probable token.
    """

    mean: float
    median: float
    p99: float
    k: int
    covered: float
    same_top1: float


def perplexity(logprobs: Sequence[Array], units: int | None = None) -> float:
    """exp(-sum of natural-log probabilities / units). Units are the tokens, or a number of words or bytes."""
    total = math.fsum(float(array.sum(dtype=np.float64)) for array in logprobs)
    count = sum(len(array) for array in logprobs) if units is None else units
    if count < 1:
        raise UsageError("There is nothing to take a perplexity of. Give at least one token.")
    return math.exp(-total / count)


def ln_ratio(reference: Sequence[Array], arm: Sequence[Array], seed: int = 0) -> Estimate:
    """ln(perplexity of arm / perplexity of reference), paired token by token.

    Args:
        reference, arm: log-probabilities of the same tokens, one array for each document, shape (tokens,).

    Returns:
        The mean difference per token. The standard error is that of a bootstrap over documents, since the tokens of a
        document are not independent (Efron and Tibshirani 1993, chapters 6 and 8). The interval is Student's with one
        degree of freedom less than there are documents: few documents make percentile intervals too narrow.

    Raises:
        UsageError: the documents differ, or there are fewer than two.
    """
    lengths = [len(document) for document in reference]
    if lengths != [len(document) for document in arm]:
        raise UsageError("The two arms did not score the same tokens. Run both on the same windows.")
    differences = [
        float((reference_logprobs.astype(np.float64) - arm_logprobs).sum())
        for reference_logprobs, arm_logprobs in zip(reference, arm, strict=True)
    ]
    return _bootstrap(np.array(differences), np.array(lengths, dtype=np.float64), seed)


def _bootstrap(sums: Array, counts: Array, seed: int) -> Estimate:
    """The ratio sum(sums) / sum(counts) over documents drawn with replacement."""
    blocks = len(sums)
    if blocks < 2:
        raise UsageError(f"An interval needs at least two documents and there are {blocks}. Score more windows.")
    drawn = _draws(blocks, seed)
    ratios = (drawn @ sums) / (drawn @ counts)
    value = float(sums.sum() / counts.sum())
    # a resample varies as n documents with a spread over n, not n - 1
    error = float(ratios.std(ddof=1) * math.sqrt(blocks / (blocks - 1)))
    reach = float(distributions.t.ppf(0.5 + CONFIDENCE / 2, blocks - 1)) * error
    return Estimate(value, error, value - reach, value + reach, blocks - 1)


@lru_cache(maxsize=1)  # the statistics of one comparison draw the same documents
def _draws(blocks: int, seed: int) -> Array:
    """How often every document is in every resample, shape (resamples, documents)."""
    return np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1 / blocks), size=_RESAMPLES)


def divergence(reference_ids: Array, reference_logprobs: Array, arm_ids: Array, arm_logprobs: Array) -> Divergence:
    """Compare the most probable tokens of two arms.

    Args:
        reference_ids, arm_ids: int, shape (positions, k), most probable first.
        reference_logprobs, arm_logprobs: natural logs, the same shapes.

    Raises:
        UsageError: the positions differ, or there are none.
    """
    positions, k = reference_ids.shape
    if not positions or not k or arm_ids.shape != reference_ids.shape:
        raise UsageError(
            "A divergence needs the same positions and as many top tokens of both arms. Run both on the same windows."
        )
    nats = np.empty(positions)
    covered = np.empty(positions)
    step = max(1, (1 << 24) // (k * k))
    for start in range(0, positions, step):
        part = slice(start, start + step)
        nats[part], covered[part] = _divergences(
            reference_ids[part], reference_logprobs[part], arm_ids[part], arm_logprobs[part]
        )
    return Divergence(
        mean=float(nats.mean()),
        median=float(np.median(nats)),
        p99=float(np.quantile(nats, 0.99)),
        k=k,
        covered=float(covered.mean()),
        same_top1=float((reference_ids[:, 0] == arm_ids[:, 0]).mean()),
    )


def _divergences(ids: Array, logprobs: Array, arm_ids: Array, arm_logprobs: Array) -> tuple[Array, Array]:
    """D(reference || arm) at every position in nats, and the reference's probability of the shared tokens."""
    same = ids[:, :, None] == arm_ids[:, None, :]
    shared = same.any(axis=2)
    matched = np.where(shared, np.take_along_axis(arm_logprobs, same.argmax(axis=2), axis=1), 0).astype(np.float64)
    reference_logprobs = logprobs.astype(np.float64)
    p = np.where(shared, np.exp(reference_logprobs), 0)
    q = np.where(shared, np.exp(matched), 0)
    single = np.where(shared, p * (reference_logprobs - matched), 0).sum(axis=1)
    # float32 logarithms leave the tail a rounding error, and a smaller tail means nothing
    floor = 1e-7
    p_tail, q_tail = np.maximum(1 - p.sum(axis=1), floor), np.maximum(1 - q.sum(axis=1), floor)
    return np.maximum(single + p_tail * np.log(p_tail / q_tail), 0), p.sum(axis=1)


def implausible_gain(ratio: Estimate, noise: float | None) -> str | None:
    """A warning if a lower precision is better by more than its interval and the noise floor. None otherwise.

    Args:
        ratio: ln(perplexity of the lower precision / perplexity of the reference).
        noise: ln_ratio of two runs of the reference that differ only in batch size. None if it was not measured.
    """
    if ratio.high >= -(abs(noise) if noise is not None else 0.0):
        return None
    floor = f"and the noise floor of {abs(noise):.2g}" if noise is not None else "(no noise floor was measured)"
    return (
        f"implausible: better than the reference by {-ratio.value:.2g} in ln(perplexity), which is beyond its interval "
        f"{floor} (look for another checkpoint, tokenizer or window)"
    )


def median_interval(samples: Sequence[float]) -> tuple[float, float] | None:
    """The interval at CONFIDENCE of the median, whatever the distribution: two of the samples themselves.

    The chance that the median lies outside the k smallest and k largest samples is twice the binomial tail
    P(X < k), X ~ B(n, 1/2) (David and Nagaraja, Order Statistics, 2003, section 7.1).

    Returns:
        (low, high). None for fewer than six samples: not even their extremes reach the confidence.
    """
    n = len(samples)
    k = int(distributions.binom.ppf((1 - CONFIDENCE) / 2, n, 0.5))
    if k < 1:
        return None
    ordered = sorted(samples)
    return ordered[k - 1], ordered[n - k]


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The mean of independent values with Student's interval of n - 1 degrees of freedom.

    Raises:
        UsageError: there are fewer than two.
    """
    count = len(values)
    if count < 2:
        raise UsageError(f"An interval needs at least two loads and there are {count}. Give more --loads.")
    mean = math.fsum(values) / count
    squares = math.fsum((value - mean) ** 2 for value in values)
    return _student(mean, math.sqrt(squares / (count - 1) / count), count - 1, confidence)


def difference_interval(first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """mean(first) - mean(second) of independent values, with Welch's interval (Biometrika 34, 1947).

    Raises:
        UsageError: a side has fewer than two.
    """
    sides = [mean_interval(values) for values in (first, second)]
    variances = [side.error**2 for side in sides]
    error, df = math.sqrt(sum(variances)), float(min(len(first), len(second)) - 1)
    if error:
        df = sum(variances) ** 2 / sum(variance**2 / side.df for variance, side in zip(variances, sides, strict=True))
    return _student(sides[0].value - sides[1].value, error, df, confidence)


def _student(value: float, error: float, df: float, confidence: float) -> Estimate:
    reach = float(special.stdtrit(df, 0.5 + confidence / 2)) * error
    return Estimate(value, error, value - reach, value + reach, df)


def reach(count: int) -> float:
    """Half the width of the interval of a mean of `count` values, in their standard deviations."""
    return float(special.stdtrit(count - 1, 0.5 + CONFIDENCE / 2)) / math.sqrt(count)


def p_above(value: float, error: float, df: float, bound: float) -> float:
    """The chance of an estimate as high as `value` or higher, where the truth is no higher than `bound`."""
    if not error:
        return 0.0 if value > bound else 1.0
    return float(special.stdtr(df, (bound - value) / error))


def holm(p_values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses Holm's procedure rejects: the chance to reject any true one is at most `level`.

    Scandinavian Journal of Statistics 6(2), 1979.
    """
    rejected = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > level / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


def look_level(loads: int, most_loads: int, least_loads: int, level: float) -> float:
    """The part of `level` for the look after so many loads, of looks from `least_loads` to `most_loads`.

    The parts add up to `level`, so the chance of an error at any look is at most that, by Boole's inequality. They are
    the steps of O'Brien and Fleming's spending function (Lan and DeMets, Biometrika 70(3), 1983): few errors early.
    _EVENLY of the level is spent in even steps, for of many looks the first would have a part too small for a float.
    """

    def spent(count: int) -> float:
        share = count / most_loads
        early = float(2 * special.ndtr(special.ndtri(level / 2) / math.sqrt(share)))
        return (1 - _EVENLY) * early + _EVENLY * level * share

    return spent(loads) - (spent(loads - 1) if loads > least_loads else 0.0)


def detectable(loads: int, scatter: float, level: float, power: float) -> float:
    """The true difference of two arms' logarithms that is seen to lie above a bound with this power, from that bound.

    Args:
        scatter: standard deviation of a load's own level, relative. A pair's difference has its root of two.

    Raises:
        ValueError: fewer than two loads.
    """
    df = loads - 1
    critical = float(special.stdtrit(df, 1 - level))
    shift = optimize.brentq(lambda shift: distributions.nct.sf(critical, df, shift) - power, 0.0, 10 * critical + 10)
    return float(shift) * scatter * math.sqrt(2 / loads)
