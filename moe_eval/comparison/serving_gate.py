"""Conditions of a gate on servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from moe_eval.comparison import ratio_wording, serving_wording, verdict
from moe_eval.records.comparison import Pair
from moe_eval.records.ratios import Ratio
from moe_eval.records.verdicts import Rules, Verdict
from moe_eval.stats import LEAST_LOADS

# by their names in ServingRatios: how many times better the other arm is. Without a load point goodput is the most that
# any has, and users are those within --tpot_ms
FIGURES: Mapping[str, str] = {
    "goodput": "goodput_req_s",
    "output": "output_tok_s",
    "user": "tok_s_per_user",
    "ttft": "ttft_p50_ms",
    "e2e": "e2e_p50_ms",
    "energy": "j_per_tok",
    "users": "",
}
UNCHECKED = "and routing was not checked"
Figure = tuple[str, bool, float | None]  # in words, whether its whole interval holds, and the p-value of a failure


def figures(pair: Pair, name: str, point: str | None, sign: Literal[">=", "<="], bound: float) -> list[Figure]:
    """What a condition bounds. A figure that cannot be decided has no p-value, and says why.

    Args:
        name: of FIGURES. `point`: a load point such as c8, None for all of them.
    """
    serving = pair.serving
    if serving is None or serving.verdict is Verdict.NOT_COMPARABLE or pair.verdict is Verdict.BROKEN:
        return [(_why_not(pair), False, None)]
    is_checked = serving_wording.is_checked(pair)
    if name == "goodput" and point is None:
        return [_figure("goodput", serving.goodput, sign, bound, is_checked)]
    if name == "users":
        return [_figure("users in time", serving.users.ratio if serving.users else None, sign, bound, is_checked)]
    points = [entry for entry in serving.points if point in (None, entry.point.name)]
    if not points:
        return [(f"no load point {point or ''} was measured on both sides".replace("  ", " "), False, None)]
    return [_figure(entry.name, getattr(entry.ratios, FIGURES[name]), sign, bound, is_checked) for entry in points]


def _why_not(pair: Pair) -> str:
    """Why there is no figure at all."""
    if pair.serving is None:
        return "servers were not measured on both sides"
    if pair.verdict is Verdict.BROKEN:
        return "a broken arm has no speed"
    return f"not comparable. {' '.join((*pair.differs, *pair.serving.differs))}"


def _figure(place: str, ratio: Ratio | None, sign: Literal[">=", "<="], bound: float, is_checked: bool) -> Figure:
    if ratio is None:
        return f"{place} has no such figure", False, None
    why = f"{place} {ratio_wording.ratio_text(ratio, Rules())}"
    if ratio.loads < LEAST_LOADS or ratio.low is None or ratio.high is None:
        return f"{why} is a quick look", False, None
    if not is_checked:
        return f"{why}, {UNCHECKED}", False, None
    holds = ratio.low >= bound if sign == ">=" else ratio.high <= bound
    return why, holds, verdict.p_value(ratio, bound, is_above=sign == "<=")
