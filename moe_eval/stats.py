"""Statistics of two arms that scored the same tokens: pure functions over arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats as distributions

from moe_eval.errors import UsageError

Array = npt.NDArray[Any]

CONFIDENCE = 0.95
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Estimate:
    """A figure with its standard error and its interval at CONFIDENCE."""

    value: float
    error: float
    low: float
    high: float


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
    return Estimate(value, error, value - reach, value + reach)


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


def block_ratio(above: Sequence[Sequence[float]], below: Sequence[Sequence[float]], seed: int = 0) -> Estimate:
    """The ratio above / below of two arms that were measured side by side in blocks.

    Drift over a run (clocks, temperature) moves both arms of a block alike and cancels in its ratio.

    Args:
        above, below: positive samples of every block, for example seconds.

    Returns:
        exp(mean over blocks of ln(median above / median below)) and its interval, from a bootstrap over blocks with
        Student's t as in ln_ratio. `error` is that of the logarithm.

    Raises:
        UsageError: the blocks differ, or there are fewer than two.
    """
    if len(above) != len(below) or not all(map(len, [*above, *below])):
        raise UsageError("A ratio needs the same blocks of both arms. Measure both in every block.")
    logs = np.array([math.log(np.median(a) / np.median(b)) for a, b in zip(above, below, strict=True)])
    if len(logs) < 2:
        raise UsageError(f"An interval needs at least two blocks and there are {len(logs)}. Measure more iterations.")
    log_ratio = _bootstrap(logs, np.ones(len(logs)), seed)
    return Estimate(math.exp(log_ratio.value), log_ratio.error, math.exp(log_ratio.low), math.exp(log_ratio.high))
