"""Frontiers of servers against closed forms, and the coverage of what is interpolated on them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from moe_eval.comparison import frontier


def curve(users: np.ndarray, gain: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Speeds of a user and of a GPU where a token takes 10 ms x users^0.5 / gain: straight lines in logarithms."""
    tpot = 10 * users**0.5 / gain
    return 1000 / tpot, 1000 * users / tpot


USERS = np.array([1.0, 2.0, 4.0, 8.0, 16.0])


def test_dominated_points_are_not_on_it() -> None:
    per_user, per_gpu = [100.0, 90.0, 80.0, 80.0, 50.0], [10.0, 30.0, 20.0, 40.0, 40.0]
    flags = [
        not any((a >= x and b >= y) and (a, b) != (x, y) for a, b in zip(per_user, per_gpu, strict=True))
        for x, y in zip(per_user, per_gpu, strict=True)
    ]
    assert frontier.best(per_user, per_gpu) == flags == [True, True, False, True, False]


@pytest.mark.parametrize("gain", [1.1, 1.4])
@pytest.mark.parametrize("users", [2.0, 3.0, 5.7])
def test_at_equal_speed_a_gain_in_time_counts_twice(gain: float, users: float) -> None:
    """u' = gain^2 u users are as fast as u were, and make gain^2 times the tokens."""
    speed, rate = curve(np.array([users]))
    at = frontier.per_gpu_at(float(speed[0]), *curve(USERS, gain))
    assert at == pytest.approx(gain**2 * float(rate[0]))


def test_nothing_is_extrapolated() -> None:
    per_user, per_gpu = curve(USERS)
    assert frontier.per_gpu_at(per_user[0] * 1.01, per_user, per_gpu) is None
    assert frontier.per_gpu_at(per_user[-1] * 0.99, per_user, per_gpu) is None
    assert frontier.per_gpu_at(per_user[-1], per_user, per_gpu) == pytest.approx(per_gpu[-1])


@pytest.mark.parametrize(("limit", "users"), [(10.0, 1.0), (25.0, 6.25), (39.9, 15.92), (40.0, 16.0)])
def test_users_in_time_solve_the_curve_for_users(limit: float, users: float) -> None:
    tpot = 10 * USERS**0.5
    number, is_least = frontier.users_within(limit, USERS, tpot)
    assert number == pytest.approx(users, rel=1e-3)
    assert is_least == (limit >= 40)


def test_too_slow_for_one_user_is_none() -> None:
    assert frontier.users_within(9.0, USERS, 10 * USERS**0.5) == (None, False)


def test_the_bootstraps_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Four loads that scatter by 2 %, 150 times: a binomial at 95 % has 135 or more of them in 99 % of runs."""
    random, gain = np.random.default_rng(7), 1.3
    truth, held = 2 * math.log(gain), 0
    for _ in range(150):
        scatter = random.normal(0, 0.02, (2, 1, 4))  # of a load's own level, at all points alike
        noise = np.exp(scatter + random.normal(0, 0.005, (2, len(USERS), 4)))
        sides = [curve(USERS), curve(USERS, gain)]
        per_user = np.array([side[0][:, None] / noise[at] for at, side in enumerate(sides)])
        per_gpu = np.array([side[1][:, None] / noise[at] for at, side in enumerate(sides)])

        def statistic(loads: object, users: np.ndarray = per_user, gpus: np.ndarray = per_gpu) -> float | None:
            speeds, rates = (np.exp(np.log(array[:, :, loads]).mean(2)) for array in (users, gpus))
            at = frontier.per_gpu_at(float(speeds[0, 2]), speeds[1], rates[1])
            return None if at is None else math.log(at / rates[0, 2])

        estimate = frontier.bootstrapped(statistic, 4)
        assert estimate is not None
        held += estimate.low <= truth <= estimate.high
    assert held >= 135


def test_one_load_has_no_interval() -> None:
    assert frontier.bootstrapped(lambda _: 0.0, 1) is None
    assert frontier.bootstrapped(lambda loads: None if 0 in loads else 0.0, 3) is None


def test_of_few_loads_every_draw_counts_with_its_chance() -> None:
    """The mean's bootstrap error is the population's deviation over sqrt(n), which n / (n - 1) corrects."""
    values = np.array([1.0, 2.0, 4.0, 9.0])
    estimate = frontier.bootstrapped(lambda loads: float(values[list(loads)].mean()), 4)
    assert estimate is not None
    assert estimate.error == pytest.approx(values.std(ddof=1) / 2)
    many = np.arange(9.0)
    estimate = frontier.bootstrapped(lambda loads: float(many[list(loads)].mean()), 9)
    assert estimate is not None
    assert estimate.error == pytest.approx(many.std(ddof=1) / 3, rel=0.1)
