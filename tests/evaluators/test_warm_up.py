"""When a warm-up is over: made-up series, and simulated drifts of which the rest is known."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np
import pytest

from moe_eval.evaluators.warm_up import UNSETTLED, ended, noise
from moe_eval.records.run import CUT_SHORT, LEAST_WARM_UPS

QUIET = "noise of the last 5 below 0.5 %"
LEAST = 5


def on_cpu(seconds: Sequence[float]) -> str | None:
    """Why a warm-up on a CPU is over, but for its caps."""
    reason = ended(seconds, [], LEAST, on_gpu=False)
    return None if reason == UNSETTLED else reason


def on_gpu(seconds: Sequence[float], *temperatures: Sequence[float]) -> str | None:
    """Why a warm-up on GPUs is over. Temperatures are of every GPU by call, none without NVML."""
    readings = list(zip(*temperatures, strict=True)) if temperatures else [()] * len(seconds)
    return ended(seconds, readings, LEAST, on_gpu=True)


def test_it_is_over_when_it_is_quiet_or_its_noise_is_steady() -> None:
    falling = [3.0, 2.0, 1.5, 1.2, 1.1]
    assert on_cpu(falling) is None
    assert on_cpu([*falling, 1.0, 1.001, 1.0, 1.001, 1.0]) is None, "the last ten have a trend"
    assert on_cpu([*falling, *[1.0, 1.001] * 5]) == QUIET
    noisy = [1.0, 1.1] * 10  # inherently noisy: no patience would settle it
    assert on_cpu(noisy[:5]) is None
    assert on_cpu(noisy) == "noise is steady"
    assert on_cpu([0.001] * 20) is None, "twenty milliseconds are no warm-up"


@pytest.mark.parametrize("minimum", range(1, LEAST_WARM_UPS))
def test_fewer_than_five_on_request_are_all_there_are(minimum: int) -> None:
    for on_gpu_ in (False, True):
        reasons = [ended([9.0] * count, [(20.0,)] * count, minimum, on_gpu=on_gpu_) for count in range(1, minimum + 1)]
        assert reasons == [None] * (minimum - 1) + [CUT_SHORT]


@pytest.mark.parametrize("faster", [0.05, 0.02, 0.01, 0.001, -0.001, -0.01, -0.02])
def test_a_steady_drift_is_not_settled_however_quiet_it_is(faster: float) -> None:
    drifting = [(1 - faster) ** at for at in range(20)]
    noises = [noise(drifting[: at + 5]) for at in range(16)]
    assert max(noises) / min(noises) < 1 + 1e-4
    assert [on_cpu(drifting[:count]) for count in range(5, 21)] == [None] * 16


def test_noise_that_is_still_calming_down_is_not_steady() -> None:
    loud = [1.0, 1.6, 1.0, 1.6, 1.3]
    assert on_cpu([*loud, 1.3, 1.31, 1.29, 1.3, 1.31]) is None


@pytest.mark.parametrize("spread", [0.001, 0.03])
def test_a_steady_series_is_told_to_drift_as_often_as_the_test_allows(spread: float) -> None:
    draws = np.random.default_rng(3).normal(1, spread, (300, 20))
    delayed = [on_cpu(list(row[:10])) is None for row in draws]
    assert sum(delayed) / 300 == pytest.approx(0.05 if spread < 0.005 else 0.1, abs=0.03), "one test, or two of them"
    assert sum(any(on_cpu(list(row[:count])) for count in range(5, 21)) for row in draws) > 285


def test_a_gpu_without_a_temperature_warms_up_for_30_s() -> None:
    assert on_gpu([1.0] * 29) is None
    assert on_gpu([1.0] * 30) == f"{QUIET}, after 30 s"


def test_a_gpu_that_has_worked_before_is_warm_earlier() -> None:
    def after(worked: float, calls: int, slower: float = 0.0) -> str | None:
        seconds = [2 + slower * (at % 2) for at in range(calls)]
        return ended(seconds, [()] * calls, LEAST, on_gpu=True, worked=worked)

    assert after(19, 5) is None
    assert after(20, 5) == f"{QUIET}, after 10 s and 20 s of other shapes"
    assert after(100, 4) is None, "five calls there are in any case"
    assert after(100, 5, slower=0.1) is None, "and times that have settled"
    assert ended([1.0] * 9, [()] * 9, LEAST, on_gpu=True, worked=100) is None, "and 10 s of this shape"
    assert ended([1.01**at for at in range(40)], [()] * 40, LEAST, on_gpu=True, worked=100) is None


@pytest.mark.parametrize(
    ("temperatures", "flat"),
    [
        ([54] * 11, "54"),
        ([54, 55, 54, 54, 55, 54, 55, 55, 54, 54, 55], "55"),
        ([54, 55, 54, 56, 55, 54, 55, 55, 54, 54, 55], None),  # two degrees
        ([54] * 5 + [55] * 6, None),  # a degree in 10 s, and no way back
    ],
)
def test_a_flat_temperature_stands_for_the_rest_of_the_30_s(temperatures: list[float], flat: str | None) -> None:
    seconds = [1.0] * 11
    assert on_gpu(seconds[1:], temperatures[1:]) is None, "from the end of the first call, 10 s are not over"
    assert on_gpu(seconds, temperatures) == (flat and f"{QUIET}, temperature flat at {flat} C")
    assert on_gpu(seconds, [30] * 11, temperatures) == (flat and f"{QUIET}, temperature flat at {flat} C"), "every GPU"


def test_temperatures_that_fail_for_a_while_are_not_flat() -> None:
    readings: list[tuple[float, ...]] = [(54.0,)] * 11
    assert ended([1.0] * 11, [*readings[:6], (), *readings[7:]], LEAST, on_gpu=True) is None


def test_a_gpu_that_drifts_on_warms_up_for_90_s() -> None:
    drifting = [0.999**at for at in range(200)]
    by_count = [on_gpu(drifting[:count]) for count in range(1, 100)]
    last = by_count.index(UNSETTLED)
    assert by_count[:last] == [None] * last
    assert 90 <= sum(drifting[: last + 1]) < 91


def remaining(time_constant: float, spread: float, *, sensor: bool, drift: float = 3.0) -> tuple[float, float, bool]:
    """Warm up by calls of a second that become faster by `drift` % in all.

    Args:
        spread: of a call, in %.
        sensor: whether NVML gives the temperature, which rises from 40 to 65 degrees as the drift goes on.

    Returns:
        Medians of 11 simulated warm-ups: seconds, and % of drift still to come. Then whether most did not settle.
    """
    lasted, left, unsettled = [], [], 0
    for seed in range(11):
        generator = np.random.default_rng(seed)
        seconds: list[float] = []
        readings: list[tuple[float, ...]] = []
        now, reason = 0.0, None
        while reason is None:
            to_come = math.exp(-now / time_constant) if drift else 0.0
            seconds.append((1 + drift / 100 * to_come) * (1 + spread / 100 * generator.standard_normal()))
            now += seconds[-1]
            readings.append((round(65 - 25 * to_come),) if sensor else ())
            reason = ended(seconds, readings, LEAST, on_gpu=True)
        lasted.append(now)
        left.append(drift * math.exp(-now / time_constant))
        unsettled += reason == UNSETTLED
    return statistics.median(lasted), statistics.median(left), unsettled > 5


# docs/method/speed.md shows these: time constant in s, noise of a call in %; seconds, % still to come, unsettled
LEFT = {
    (30, 0.1): (91, 0.15, True),
    (60, 0.1): (90, 0.67, True),
    (120, 0.1): (91, 1.41, True),
    (30, 0.5): (31, 1.08, False),
    (60, 0.5): (31, 1.80, False),
    (120, 0.5): (31, 2.32, False),
}


@pytest.mark.parametrize("sensor", [False, True])
@pytest.mark.parametrize(("case", "expected"), LEFT.items(), ids=str)
def test_what_is_left_of_a_drift_of_3_percent(
    case: tuple[float, float], expected: tuple[float, float, bool], sensor: bool
) -> None:
    seconds, left, unsettled = remaining(*case, sensor=sensor)
    assert seconds == pytest.approx(expected[0], abs=1)
    assert left == pytest.approx(expected[1], abs=0.02)
    assert unsettled == expected[2]


@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_a_gpu_that_is_warm_already_is_soon_done(spread: float) -> None:
    assert remaining(60, spread, sensor=True, drift=0.0)[0] <= 13
    assert remaining(60, spread, sensor=False, drift=0.0)[0] <= 32
