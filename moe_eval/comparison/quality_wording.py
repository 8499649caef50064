"""The sentences of a quality verdict. Every number stands with its interval, where it has one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moe_eval.records.comparison import QualityComparison
from moe_eval.records.verdicts import QualityVerdict


def sentence(quality: QualityComparison, broken: Sequence[str], *, has_more_text: bool) -> str:
    """The verdict, what backs it, and the divergence.

    Args:
        broken: why an arm is broken, a clause each.
        has_more_text: whether windows of the data set were left out.
    """
    if quality.random_weights:
        return "Quality was not judged: the weights are random."
    head = {
        QualityVerdict.BROKEN: f"Quality is broken: {', and '.join(broken)}.",
        QualityVerdict.COSTS: f"Quality costs {change(quality)}{_beyond(quality, ', ')}.",
        QualityVerdict.NO_COST: f"Quality costs nothing{_beyond(quality, ' ')}. It changes by {change(quality)}.",
        QualityVerdict.OPEN: _open(quality, has_more_text=has_more_text),
        QualityVerdict.NOT_JUDGED: f"Quality was not judged. It changes by {change(quality)}. {quality.no_interval}",
    }[quality.verdict]
    flag = [f"{quality.flag[:1].upper()}{quality.flag[1:].rstrip('. ')}."] if quality.flag else []
    noise = ["No noise floor was measured."] if quality.noise_floor is None and quality.ln_ppl_ratio else []
    return " ".join([head, *noise, *flag, *_divergence(quality)])


def change(quality: QualityComparison) -> str:
    """The change of perplexity, such as "+0.40 % perplexity (+0.12 to +0.68)"."""
    ratio = quality.ln_ppl_ratio
    ends = None if ratio is None else (100 * math.expm1(ratio.low), 100 * math.expm1(ratio.high))
    return bounded(100 * (quality.ppl_change or 0.0), ends, " % perplexity", sign="+")


def bounded(value: float, ends: tuple[float, float] | None, unit: str, sign: str = "", remark: str = "") -> str:
    """A figure with its interval, to two significant digits of the interval's width."""
    if ends is None:
        return f"{value:{sign}.3g}{unit} (no interval{remark})"
    fewest = _decimals(ends[1] - ends[0] or value)
    # an end above or below 0 is not to look like 0
    clear = (count for count in range(fewest, fewest + 3) if all(round(end, count) or not end for end in ends))
    digits = next(clear, fewest)
    low, high = (f"{end:{sign}.{digits}f}" for end in ends)
    return f"{value:{sign}.{digits}f}{unit} ({low} to {high}{remark})"


def _decimals(size: float) -> int:
    """Decimals that show two significant digits of a size."""
    return max(0, 1 - math.floor(math.log10(abs(size)))) if size else 1


def _beyond(quality: QualityComparison, separator: str) -> str:
    if quality.noise_floor is None:
        return ""
    noise = 100 * math.expm1(quality.largest_noise)
    return f"{separator}beyond the noise floor of {noise:.{_decimals(noise)}f} %"


def _open(quality: QualityComparison, *, has_more_text: bool) -> str:
    remedy = "Score more windows (--num_chunks)" if has_more_text else "Score a larger data set"
    finding = f"No quality cost was found{_beyond(quality, ' ')}"
    ratio = quality.ln_ppl_ratio
    if ratio is None:
        return f"{finding}."
    low, high = 100 * math.expm1(ratio.low), 100 * math.expm1(ratio.high)
    bound = f"{high:+.{_decimals(high - low)}f} %"
    return f"{finding}, and it is at most {bound}: {change(quality)}. {remedy} to settle it."


def _divergence(quality: QualityComparison) -> list[str]:
    divergence = quality.divergence
    if divergence is None:
        return []
    kld, top1 = divergence.kld, divergence.top1
    remark = ", lower bound" if divergence.is_lower_bound else ""
    nats = bounded(divergence.mean, (kld.low, kld.high) if kld else None, " nats", remark=remark)
    agreement = bounded(100 * divergence.same_top1, (100 * top1.low, 100 * top1.high) if top1 else None, " %")
    return [f"KLD is {nats}.", f"Top-1 agreement is {agreement}."]
