"""The frontier of a server: tokens per second of a user against those of a GPU, and what is read off it. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations_with_replacement

import numpy as np
import numpy.typing as npt

from moe_eval import stats

Floats = npt.NDArray[np.float64]
Statistic = Callable[[Sequence[int]], float | None]  # a logarithm from loads by index
_DRAWS = 500  # at most
_VALID = 0.95  # of them have to have a value


def best(per_user: Sequence[float], per_gpu: Sequence[float]) -> list[bool]:
    """Of every point whether no other one is better in both."""
    points = list(zip(per_user, per_gpu, strict=True))
    return [
        not any(rival != point and rival[0] >= point[0] and rival[1] >= point[1] for rival in points)
        for point in points
    ]


def per_gpu_at(speed: float, per_user: Floats, per_gpu: Floats) -> float | None:
    """Tokens per second and GPU at so many tokens per second and user, between points of the frontier.

    Logarithms are interpolated linearly. None beyond the frontier's ends: nothing is extrapolated.
    """
    on_frontier = np.array(best(per_user.tolist(), per_gpu.tolist()))
    users, gpus = per_user[on_frontier], per_gpu[on_frontier]
    order = np.argsort(users)
    users, gpus = np.log(users[order]), np.log(gpus[order])
    at = math.log(speed)
    if not users[0] - 1e-12 <= at <= users[-1] + 1e-12:
        return None
    return float(np.exp(np.interp(at, users, gpus)))


def users_within(limit_ms: float, users: Floats, tpot_ms: Floats) -> tuple[float | None, bool]:
    """The most users that are served within a time per token, and whether all points are, so that it may be more.

    Logarithms are interpolated linearly between the last point in time and the first one that is not.

    Args:
        users, tpot_ms: of every point, by users.
    """
    late = np.flatnonzero(tpot_ms > limit_ms)
    if not len(late):
        return float(users[-1]), True
    first = int(late[0])
    if first == 0:
        return None, False
    low, high = np.log(tpot_ms[first - 1 : first + 1])
    share = (math.log(limit_ms) - low) / (high - low)
    before, after = np.log(users[first - 1 : first + 1])
    return float(np.exp(before + share * (after - before))), False


def _draws(loads: int) -> list[tuple[tuple[int, ...], float]]:
    """Draws of as many loads with replacement, and the chance of each: all, or a sample of many."""
    if math.comb(2 * loads - 1, loads) > _DRAWS:
        rows = np.random.default_rng(0).integers(loads, size=(_DRAWS, loads)).tolist()
        return [(tuple(row), 1 / _DRAWS) for row in rows]
    orders = math.factorial(loads)
    return [
        (draw, orders / math.prod(map(math.factorial, Counter(draw).values())) / loads**loads)
        for draw in combinations_with_replacement(range(loads), loads)
    ]


def bootstrapped(statistic: Statistic, loads: int) -> stats.Estimate | None:
    """A logarithm computed from several loads together, with its interval by bootstrap over loads.

    The error is the bootstrap's times sqrt(n / (n - 1)), the interval Student's with n - 1 degrees of freedom:
    percentiles of a few loads are too narrow.

    Args:
        statistic: of loads by index, some of them several times. None where there is none.

    Returns:
        None with fewer than two loads, or where more than one draw in twenty has no value.
    """
    from scipy import special

    value = statistic(range(loads))
    if value is None or loads < 2:
        return None
    rows = [(drawn, weight) for row, weight in _draws(loads) if (drawn := statistic(row)) is not None]
    weights = [weight for _, weight in rows]
    if sum(weights) < _VALID:
        return None
    mean = float(np.average([drawn for drawn, _ in rows], weights=weights))
    variance = float(np.average([(drawn - mean) ** 2 for drawn, _ in rows], weights=weights))
    error = math.sqrt(variance * loads / (loads - 1))
    reach = float(special.stdtrit(loads - 1, 0.5 + stats.CONFIDENCE / 2)) * error
    return stats.Estimate(value, error, value - reach, value + reach, loads - 1)
