"""Paired scores of 0 or 1: the tests and the interval of their difference. Pure functions, over arrays as well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_eval import stats
from moe_eval.stats import ERROR_RATE

Counts = int | npt.NDArray[Any]
_END = 1 - 1e-9  # a difference of 1 leaves no variance


def mcnemar(losses: int, gains: int) -> float:
    """The two-sided p-value of McNemar's exact test: losses ~ B(losses + gains, 1/2) (Psychometrika 12, 1947)."""
    from scipy import special

    flips = losses + gains
    return min(1.0, 2 * float(special.bdtr(min(losses, gains), flips, 0.5))) if flips else 1.0


def clustered(differences: Sequence[int]) -> float:
    """The two-sided p-value of gains - losses over documents, each of which may have several flips.

    It is the exact test of all signs of the documents' differences. With one flip a document it is McNemar's.

    Args:
        differences: gains - losses of every document.
    """
    from scipy import special

    counts = Counter(abs(value) for value in differences if value)
    chances = np.ones(1)  # of sums from -k to k
    for size, documents in counts.items():
        ups = np.arange(documents + 1)
        log_chances = -np.log(documents + 1) - special.betaln(ups + 1, documents - ups + 1) - documents * np.log(2)
        steps = np.zeros(2 * size * documents + 1)
        steps[:: 2 * size] = np.exp(log_chances)
        chances = np.convolve(chances, steps)
    sums = np.abs(np.arange(len(chances)) - len(chances) // 2)
    return min(1.0, float(chances[sums >= abs(sum(differences))].sum()))


def score(losses: Counts, gains: Counts, documents: int, bound: float) -> npt.NDArray[Any]:
    """Tango's score statistic of (gains - losses) / documents against `bound`, nearly standard normal at the truth.

    Statistics in Medicine 17, 1998. It needs no flips to be finite, so that few documents without flips show little.
    """
    lost, gained = np.asarray(losses, dtype=np.float64), np.asarray(gains, dtype=np.float64)
    linear = -gained - lost + (2 * documents - gained + lost) * bound
    constant = -lost * bound * (1 - bound)
    share = (np.sqrt(linear**2 - 8 * documents * constant) - linear) / (4 * documents)
    variance = documents * (2 * share + bound * (1 - bound))
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = (gained - lost - documents * bound) / np.sqrt(variance)
    return np.where(variance > 0, statistic, 0.0)


def interval(losses: int, gains: int, documents: int) -> tuple[float, float]:
    """The 95 % interval of the difference of shares: all bounds that `score` does not reject."""
    from scipy import optimize, special

    reach = float(special.ndtri(1 - ERROR_RATE))
    value = (gains - losses) / documents

    def excess(bound: float, limit: float) -> float:
        return float(score(losses, gains, documents, bound)) - limit

    low = high = value
    if excess(-_END, reach) > 0:
        low = float(optimize.brentq(excess, -_END, max(value, -_END), args=(reach,)))
    if excess(_END, -reach) < 0:
        high = float(optimize.brentq(excess, min(value, _END), _END, args=(-reach,)))
    return low, high


def share_interval(count: int, documents: int) -> tuple[float, float]:
    """The exact 95 % interval of a share (Clopper and Pearson, Biometrika 26, 1934)."""
    from scipy import special

    low = float(special.betaincinv(count, documents - count + 1, ERROR_RATE)) if count else 0.0
    high = float(special.betaincinv(count + 1, documents - count, 1 - ERROR_RATE)) if count < documents else 1.0
    return low, high


def share_p_value(count: int, documents: int, bound: float, *, is_above: bool) -> float:
    """The chance of so large (or small) a share, where the true one is `bound`."""
    from scipy import special

    below = float(special.bdtr(count - 1 if is_above else count, documents, bound)) if count or not is_above else 0.0
    return 1 - below if is_above else below


def clustered_share_interval(share: float, error: float, documents: int) -> tuple[float, float]:
    """The 95 % interval of a share over documents with several answers, Student's.

    It is no narrower than what no document may show by chance.
    """
    from scipy import special

    if documents < 2:
        return 0.0, 1.0
    reach = float(special.stdtrit(documents - 1, 1 - ERROR_RATE)) * error
    half = max(reach, 1 - ERROR_RATE ** (1 / documents))
    return max(0.0, share - half), min(1.0, share + half)


def clustered_share_p_value(share: float, error: float, documents: int, bound: float, *, is_above: bool) -> float:
    """The chance of so large (or small) a share over documents with several answers, where the true one is `bound`."""
    if documents < 2:
        return 1.0
    sign = 1 if is_above else -1
    unseen: float = (1 - min(max(sign * (share - bound), 0.0), 1.0)) ** documents
    return max(stats.p_above(sign * share, error, documents - 1, sign * bound), unseen)
