"""Speed ratios with what their intervals leave out: drift between runs and loads, and one load's own luck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# How far a ratio is taken to be moved where no interval holds it, by what a Qwen3-MoE in BF16 did on H100s: it moved by
# up to 4.3 % from a load on one machine to a load on another and by 2.4 % from one load to the next (both at batch 1),
# and two processes that took turns stayed 0.24 % apart (batch 32), which no number of turns averages out
BETWEEN_RUNS, BETWEEN_LOADS, SIDE_BY_SIDE = 1.05, 1.03, 1.005
_Dict = Mapping[str, Any]


def loose(ratio: _Dict, schedule: _Dict | None) -> str:
    """Why drift may be outside a ratio's interval; empty where it is in it.

    Args:
        ratio: value, low and high as speed.compare gives them.
        schedule: of the pair, as compare.make has it.
    """
    if schedule is None or not schedule["one_run"]:
        return "the arms were measured in two runs, so drift between them is in no interval"
    if schedule["mode"] == "sequential":
        return "each arm was loaded once, so drift between them is in no interval"
    return "there is one block, so there is no interval" if ratio["low"] is None else ""


def allowance(ratio: _Dict, schedule: _Dict | None) -> float:
    """The factor by which a ratio may be off beside its interval; 1 where each of several blocks is its own load."""
    if schedule is None or not schedule["one_run"]:
        return BETWEEN_RUNS
    if schedule["mode"] == "sequential" or ratio["low"] is None:
        return BETWEEN_LOADS
    return SIDE_BY_SIDE if schedule["mode"] == "interleaved" else 1.0


def bounds(ratio: _Dict, schedule: _Dict | None) -> tuple[float, float]:
    """A ratio's interval, at least as wide as the allowance either way."""
    value, low, high = ratio["value"], ratio["low"], ratio["high"]
    factor = allowance(ratio, schedule)
    return min(value / factor, value if low is None else low), max(value * factor, value if high is None else high)


def basis(ratio: _Dict, schedule: _Dict | None) -> str:
    """What bounds are, in words that a sentence can begin with."""
    if bounds(ratio, schedule) == (ratio["low"], ratio["high"]):
        return "the interval"
    what = "drift" if loose(ratio, schedule) else "difference between two processes"
    return f"the ratio, {100 * (allowance(ratio, schedule) - 1):.1g} % of {what} allowed for,"


def holds_one(ratio: _Dict, schedule: _Dict | None) -> str:
    """The bounds and the 1 in them, in words; only where it is in them."""
    low, high = ratio["low"], ratio["high"]
    return "the interval holds 1" if low is not None and low <= 1 <= high else f"{basis(ratio, schedule)} may be 1"


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
