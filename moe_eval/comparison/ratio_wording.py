"""A ratio and its interval in words, and with how many decimals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moe_eval.records.ratios import Ratio
from moe_eval.records.run import LEAST_WARM_UPS
from moe_eval.records.verdicts import Rules, Verdict
from moe_eval.stats import LEAST_LOADS

_MOST_DIGITS = 6


def interval_digits(low: float | None, high: float | None, bounds: Sequence[float] = ()) -> int:
    """Decimals for a figure and its interval: two significant digits of its width, 2 without an interval.

    Args:
        bounds: what an end is held against. There are more decimals where one would read as such a bound.
    """
    if low is None or high is None or not math.isfinite(high - low):
        return 2
    digits = 2 if high == low else max(0, 1 - math.floor(math.log10(high - low)))
    while digits < _MOST_DIGITS and any(round(end, digits) == bound != end for end in (low, high) for bound in bounds):
        digits += 1
    return min(digits, _MOST_DIGITS)


def ratio_digits(low: float | None, high: float | None, min_gain: float) -> int:
    """Decimals for a ratio and its interval, in sentences, tables and charts alike."""
    return max(2, interval_digits(low, high, (1.0, 1 + min_gain)))  # 0.885 is not 1


def ratio_text(ratio: Ratio, rules: Rules) -> str:
    """A ratio in words, such as "1.293x (1.270 to 1.317)"."""
    digits = ratio_digits(ratio.low, ratio.high, rules.min_gain)
    if ratio.low is None:
        return f"{ratio.value:.{digits}f}x"
    return f"{ratio.value:.{digits}f}x ({ratio.low:.{digits}f} to {ratio.high:.{digits}f})"


def interval_sentence(ratio: Ratio, verdict: Verdict, rules: Rules) -> str:
    """Where the interval of a ratio lies, by the verdict that follows from it."""
    gain = f"{1 + rules.min_gain:.10g}"
    if verdict is Verdict.QUICK_LOOK:
        if ratio.loads >= LEAST_LOADS:
            return f"A verdict takes {LEAST_WARM_UPS} iterations of warm-up, and there were fewer."
        return f"A verdict takes {LEAST_LOADS} loads of each arm and there {_are(ratio.loads)}."
    if verdict is Verdict.PAYS:
        return f"The interval lies above {gain}."
    if verdict is Verdict.SLOWER:
        return "The interval lies below 1."
    is_faster = ratio.low is not None and ratio.low > 1
    if verdict is Verdict.NO_DIFFERENCE:
        share = f"{100 * rules.min_gain:.10g} %"
        return f"It is faster by less than {share}." if is_faster else f"The interval stays within {share} of 1."
    return f"It is faster. Whether by {gain}x is open." if is_faster else "The interval holds 1."


def _are(loads: int) -> str:
    return "is 1" if loads == 1 else f"are {loads}"
