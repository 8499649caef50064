"""Speed ratios with everything that their intervals leave out: drift between arms that were not measured in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# how far drift between two loads is taken to move a ratio where no interval holds it: a Qwen3-MoE at batch 1 moved by
# 1.6 % from one load on an H100 to the next
DRIFT = 1.02
_Dict = Mapping[str, Any]


def loose(ratio: _Dict, schedule: _Dict | None) -> str:
    """Why a ratio's interval does not hold everything; empty where it does.

    Args:
        ratio: value, low and high as speed.compare gives them.
        schedule: of the pair, as compare.make has it.
    """
    if schedule is None or not schedule["one_run"]:
        return "the arms were measured in two runs, so drift between them is in no interval"
    if schedule["mode"] == "sequential":
        return "each arm was loaded once, so drift between them is in no interval"
    return "there is one block, so there is no interval" if ratio["low"] is None else ""


def bounds(ratio: _Dict, schedule: _Dict | None) -> tuple[float, float]:
    """A ratio's interval, at least as wide as DRIFT either way where it does not hold everything."""
    value, low, high = ratio["value"], ratio["low"], ratio["high"]
    if loose(ratio, schedule):
        return min(value / DRIFT, value if low is None else low), max(value * DRIFT, value if high is None else high)
    return low, high


def slower(row: _Dict, schedule: _Dict | None) -> bool:
    """Whether the other arm of a shape is slower beyond the interval."""
    ratio = row["speed"]["e2e_ms"]
    return ratio is not None and row["fair"] is not False and bounds(ratio, schedule)[1] < 1


def told(ratio: _Dict, schedule: _Dict | None) -> str:
    """A ratio in words, such as "1.29x, 1.27 to 1.32"."""
    shown = [each for each in (ratio["value"], ratio["low"], ratio["high"]) if each is not None]
    # as many digits as it takes to see on which side of 1 each of them is, and an interval as one
    digits = next((n for n in (2, 3, 4) if _plain(shown, n)), 5)
    value = f"{ratio['value']:.{digits}f}x"
    if ratio["low"] is None:
        return f"{value}, no interval"
    interval = f"{value}, {ratio['low']:.{digits}f} to {ratio['high']:.{digits}f}"
    return f"{interval} and drift besides" if loose(ratio, schedule) else interval


def _plain(shown: Sequence[float], digits: int) -> bool:
    ends = {round(each, digits) for each in shown[1:]}
    return all(round(each, digits) != 1 or each == 1 for each in shown) and len(ends) == len(set(shown[1:]))
