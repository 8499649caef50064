"""Statistics of two arms that scored the same tokens: pure functions over arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from moe_eval.errors import UsageError
from moe_eval.frozen import frozen

Array = npt.NDArray[Any]

CONFIDENCE = 0.95
ERROR_RATE = (1 - CONFIDENCE) / 2  # of a claim in one direction
LEAST_LOADS = 3  # of either arm for a verdict: two leave one degree of freedom
_EVENLY = 0.01  # of the error rate of looks
_LEAST_DF = 0.5  # below, one document holds nearly all tokens and an interval is as wide as anything


@frozen
class Estimate:
    """A figure with its standard error and its interval.

    `df`: degrees of freedom of Student's t that (value - truth) / error follows.
    """

    value: float
    error: float
    low: float
    high: float
    df: float


@frozen
class Divergence:
    """How far one arm's distributions are from the reference's, position by position.

    Attributes:
        mean, median, p99: Kullback-Leibler divergence D(reference || arm) in nats. The reference's `k` most probable
            tokens count singly and all others as one bucket.
        k: how many of the most probable tokens each arm gave.
        covered: mean share of the reference's probability that the single tokens hold.
        same_top1: share of positions with the same most probable token.
        kind: where the arm's probabilities of the single tokens come from. `reference ids`: it scored them. `capped`:
            they come from its own `k` most probable tokens. One that it did not give has at most the probability of
            the last of them. `shared ids`, of schema 1: only tokens that both gave count singly.
        kld, top1: `mean` and `same_top1` with intervals over documents. None with fewer than two documents.
    """

    mean: float
    median: float
    p99: float
    k: int
    covered: float
    same_top1: float
    kind: Literal["reference ids", "capped", "shared ids"]
    kld: Estimate | None = None
    top1: Estimate | None = None

    @property
    def is_lower_bound(self) -> bool:
        """Whether the divergence may be far larger. A bound above it then shows nothing."""
        return self.kind != "reference ids"


def perplexity(logprobs: Sequence[Array], units: int | None = None) -> float:
    """exp(-sum of natural-log probabilities / units). Units are the tokens, or a number of words or bytes.

    It is infinite where it is larger than any float64.
    """
    total = math.fsum(float(array.sum(dtype=np.float64)) for array in logprobs)
    count = sum(len(array) for array in logprobs) if units is None else units
    if count < 1:
        raise UsageError("There is nothing to take a perplexity of. Give at least one token.")
    try:
        return math.exp(-total / count)
    except OverflowError:
        return math.inf


def ln_ratio(reference: Sequence[Array], arm: Sequence[Array]) -> Estimate:
    """ln(perplexity of arm / perplexity of reference), paired token by token: see ratio_of_sums.

    Args:
        reference, arm: log-probabilities of the same tokens, one array for each document, shape (tokens,).

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
    return ratio_of_sums(np.array(differences), np.array(lengths, dtype=np.float64))


def ratio_of_sums(sums: Array, weights: Array) -> Estimate:
    """sum(sums) / sum(weights) over documents: the mean per token where weights are tokens.

    The tokens of a document are not independent, so documents are the unit. The standard error is that of the
    jackknife which leaves out a document at a time (Efron and Tibshirani 1993, chapter 11). The interval is
    Student's with n_eff - 1 degrees of freedom, n_eff = sum(w)^2 / sum(w^2) (Kish 1965): a few long documents count
    as few. benchmarks/quality_verdict.py shows its coverage.

    Args:
        sums, weights: of every document, float, shape (documents,).

    Raises:
        UsageError: there are fewer than two documents, or one holds nearly everything.
    """
    from scipy import stats as distributions

    documents, total, weight = len(sums), float(sums.sum()), float(weights.sum())
    if documents < 2:
        raise UsageError(f"An interval needs at least two documents and there are {documents}. Score more windows.")
    df = float(weight**2 / (weights**2).sum()) - 1
    if df < _LEAST_DF:
        raise UsageError("An interval needs two documents and one holds nearly all tokens. Score more windows.")
    without = (total - sums) / (weight - weights)
    error = float(np.sqrt((documents - 1) * without.var()))
    value, reach = total / weight, float(distributions.t.ppf(0.5 + CONFIDENCE / 2, df)) * error
    return Estimate(value, error, value - reach, value + reach, df)


def implausible_gain(ratio: Estimate, noise: float | None) -> str | None:
    """A warning if a lower precision is better by more than its interval and the noise floor. None otherwise.

    Args:
        ratio: ln(perplexity of the lower precision / perplexity of the reference).
        noise: how far batching alone may move that ratio. None if it was not measured.
    """
    if ratio.high >= -(noise or 0.0):
        return None
    floor = f"and the noise floor of {noise:.2g}" if noise is not None else "(no noise floor was measured)"
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
    from scipy import stats as distributions

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
    from scipy import special

    reach = float(special.stdtrit(df, 0.5 + confidence / 2)) * error
    return Estimate(value, error, value - reach, value + reach, df)


def reach(count: int) -> float:
    """Half the width of the interval of a mean of `count` values, in their standard deviations."""
    from scipy import special

    return float(special.stdtrit(count - 1, 0.5 + CONFIDENCE / 2)) / math.sqrt(count)


def p_above(value: float, error: float, df: float, bound: float) -> float:
    """The chance of an estimate as high as `value` or higher, where the truth is no higher than `bound`."""
    from scipy import special

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
    from scipy import special

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
    from scipy import optimize, special
    from scipy import stats as distributions

    df = loads - 1
    critical = float(special.stdtrit(df, 1 - level))
    shift = optimize.brentq(lambda shift: distributions.nct.sf(critical, df, shift) - power, 0.0, 10 * critical + 10)
    return float(shift) * scatter * math.sqrt(2 / loads)
