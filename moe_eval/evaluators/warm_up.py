"""When a warm-up is over: a rule over the seconds of its calls and the temperatures of the GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats as distributions

from moe_eval.records.run import CUT_SHORT, LEAST_WARM_UPS

UNSETTLED = "it did not settle"
# After nvbench's stdrel criterion (nvbench/stdrel_criterion.cuh): stop when the relative standard deviation is below
# 0.5 % or has stopped to change. nvbench takes all samples, and from the 65th on a change of less than 5 % counts as
# none. Here a sample is a whole call of seconds, and the first calls must not count for ever. So noise is that of the
# last five calls, and a test on the last ten decides whether it changes.
MAX_NOISE = 0.005
_TRAIL = 5
_LEVEL = 0.05  # of every test: at the first look it delays one steady series in twenty
_MOST_GROUPS = 50  # a test after every one of thousands of short calls must not take longer than the call
# A GPU's clocks drift for as long as it heats up, with time constants of 30 to 120 s. Its sensor gives whole degrees.
_GPU_SECONDS = 30.0  # where no flat temperature ends it earlier
_FLAT_SECONDS = 10.0  # at 5 s a rise of 25 degrees with a time constant of 60 s still looks flat
_FLAT_DEGREES = 1.0
_MOST_GPU_SECONDS = 90.0  # a shape of a load is not worth more of a GPU's time, and the record says that it drifts
# On a CPU there is no temperature to wait for, and a demonstration has to stay quick: nvbench's half second. A warm-up
# ends after 20 calls, or (nvbench's --timeout) 15 s beyond the least number of them.
_CPU_SECONDS = 0.5
_MOST_CPU_CALLS = 20
_MOST_CPU_SECONDS = 15.0


def ended(
    seconds: Sequence[float],
    temperatures: Sequence[Sequence[float]],
    minimum: int,
    *,
    on_gpu: bool,
    worked: float = 0.0,
) -> str | None:
    """Why a warm-up is over. None if it has to go on.

    It is over when the later half of the calls has no trend, their noise is low or steady, and a GPU is as warm as it
    gets: its temperature is flat, or it has worked for 30 s, of them 10 s in these calls. One that drifts on ends
    UNSETTLED.

    Args:
        seconds: of every call so far.
        temperatures: after every call, of every GPU, in degrees Celsius. Empty where NVML does not tell.
        minimum: the least number of calls. Below LEAST_WARM_UPS it is all of them, and the warm-up is CUT_SHORT.
        worked: seconds that the GPUs have worked for other shapes just before.
    """
    if minimum < LEAST_WARM_UPS:
        return CUT_SHORT if len(seconds) >= minimum else None
    if len(seconds) < max(minimum, _TRAIL):
        return None
    total = sum(seconds)
    if on_gpu:
        before = f" and {worked:.0f} s of other shapes" if worked else ""
        is_warm = worked + total >= _GPU_SECONDS and total >= _FLAT_SECONDS
        warm = _flat(seconds, temperatures) or (f", after {total:.0f} s{before}" if is_warm else None)
        is_enough = total >= _MOST_GPU_SECONDS
    else:
        warm = "" if total >= _CPU_SECONDS else None
        is_long = sum(seconds[minimum - 1 :]) > _MOST_CPU_SECONDS
        is_enough = is_long or (len(seconds) >= _MOST_CPU_CALLS and total >= _CPU_SECONDS)
    calm = None if warm is None else _calm(seconds)
    if calm is not None:
        return f"{calm}{warm}"
    return UNSETTLED if is_enough else None


def noise(seconds: Sequence[float]) -> float:
    """The relative standard deviation of the last calls."""
    last = np.asarray(seconds[-_TRAIL:], dtype=np.float64)
    return float(last.std(ddof=1) / last.mean())


def _calm(seconds: Sequence[float]) -> str | None:
    """Why calls count as steady. None where they have a trend, or their noise is high and was higher before.

    The trend is that of the later half, and of the last ten at least. Fewer are tested only where there are no more.
    Fisher's F tests whether the noise becomes less.
    """
    count = len(seconds)
    if _has_trend(seconds[-max(2 * _TRAIL, count // 2) :]):
        return None
    if noise(seconds) < MAX_NOISE:
        return f"noise of the last {_TRAIL} below {100 * MAX_NOISE:g} %"
    if count < 2 * _TRAIL:
        return None
    calming = (noise(seconds[:-_TRAIL]) / noise(seconds)) ** 2
    return None if calming > distributions.f.ppf(1 - _LEVEL, _TRAIL - 1, _TRAIL - 1) else "noise is steady"


def _flat(seconds: Sequence[float], temperatures: Sequence[Sequence[float]]) -> str | None:
    """The temperature of the hottest GPU, if that of every GPU has been flat. None otherwise.

    Flat is within a degree and without a trend, over the later half of the warm-up, and over five calls and 10 s at
    least. A slow rise crosses one whole degree in between, which the test sees.
    """
    times = np.cumsum(seconds)  # a reading is of the end of its call
    begin = int(np.searchsorted(times, times[-1] - max(_FLAT_SECONDS, times[-1] / 2), side="right")) - 1
    if begin < 0:
        return None
    readings = temperatures[min(begin, len(seconds) - _TRAIL) :]
    if not all(readings):
        return None
    for gpu in zip(*readings, strict=True):
        if max(gpu) - min(gpu) > _FLAT_DEGREES or _has_trend(gpu):
            return None
    return f", temperature flat at {max(readings[-1]):.0f} C"


def _has_trend(values: Sequence[float]) -> bool:
    """Whether Kendall's tau rejects that values have no trend. It has no value where all are equal."""
    groups = [part.mean() for part in np.array_split(values, min(len(values), _MOST_GROUPS))]
    return bool(distributions.kendalltau(range(len(groups)), groups).pvalue < _LEVEL)
