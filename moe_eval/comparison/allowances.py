"""What the interval of a speed ratio leaves out: drift between runs and loads, and the luck of one load."""

from __future__ import annotations

from moe_eval.records.comparison import PairSchedule, Ratio, ShapeComparison

# How far a ratio is taken to be moved where no interval holds it, by what a Qwen3-MoE in BF16 did on H100s: it moved by
# up to 4.3 % from a load on one machine to a load on another and by 2.4 % from one load to the next (both at batch 1),
# and two processes that took turns stayed 0.24 % apart (batch 32), which no number of turns averages out
BETWEEN_RUNS, BETWEEN_LOADS, SIDE_BY_SIDE = 1.05, 1.03, 1.005


def drift(ratio: Ratio, schedule: PairSchedule | None) -> str:
    """A sentence on why drift may be outside a ratio's interval. Empty where it is in it."""
    if schedule is None or not schedule.one_run:
        return "The arms were measured in two runs, so drift between them is in no interval."
    if schedule.mode == "sequential":
        return "Each arm was loaded once, so drift between them is in no interval."
    return "There is one block, so there is no interval." if ratio.low is None else ""


def allowance(ratio: Ratio, schedule: PairSchedule | None) -> float:
    """The factor by which a ratio may be off beside its interval. It is 1 where every block is a load."""
    if schedule is None or not schedule.one_run:
        return BETWEEN_RUNS
    if schedule.mode == "sequential" or ratio.low is None:
        return BETWEEN_LOADS
    return SIDE_BY_SIDE if schedule.mode == "interleaved" else 1.0


def bounds(ratio: Ratio, schedule: PairSchedule | None) -> tuple[float, float]:
    """A ratio's interval, at least as wide as the allowance either way."""
    value, factor = ratio.value, allowance(ratio, schedule)
    low, high = value / factor, value * factor
    return (low, high) if ratio.low is None or ratio.high is None else (min(low, ratio.low), max(high, ratio.high))


def holds_one(ratio: Ratio, schedule: PairSchedule | None) -> bool:
    """Whether 1 is within the bounds."""
    low, high = bounds(ratio, schedule)
    return low <= 1 <= high


def is_slower(shape: ShapeComparison, schedule: PairSchedule | None) -> bool:
    """Whether the other arm is slower at a shape, beyond the interval."""
    ratio = shape.speed.e2e_ms
    return ratio is not None and shape.fairness.is_fair is not False and bounds(ratio, schedule)[1] < 1
