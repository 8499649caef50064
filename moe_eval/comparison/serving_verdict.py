"""The verdict on an arm under load: by point, all points and arms of a run together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moe_eval.comparison import ratio_wording, serving_wording, verdict
from moe_eval.records.comparison import Pair
from moe_eval.records.serving_comparison import PointComparison, ServingComparison
from moe_eval.records.verdicts import Rules, Verdict

_ORDER = (Verdict.SLOWER, Verdict.PAYS, Verdict.OPEN, Verdict.QUICK_LOOK)


def decide(pairs: Sequence[Pair], rules: Rules) -> list[Pair]:
    """Pairs with the verdicts on their servers, by the rules of verdict.of_family.

    An arm that was measured twice is a family of its own. Points of pairs that cannot be compared are in none.
    """
    pairs = [_with_fairness(pair) for pair in pairs]
    verdicts: dict[tuple[str, str], Verdict] = {}
    for is_repeat in (False, True):
        ratios = {
            (pair.other, point.name): ratio
            for pair in pairs
            if pair.serving and pair.is_repeat is is_repeat and not (pair.differs or pair.serving.differs)
            for point in pair.serving.points
            if (ratio := point.ratios.deciding(point.point))
        }
        verdicts |= dict(zip(ratios, verdict.of_family(list(ratios.values()), rules), strict=True))
    return [
        pair if pair.serving is None else replace(pair, serving=_decided(pair, pair.serving, verdicts, rules))
        for pair in pairs
    ]


def _with_fairness(pair: Pair) -> Pair:
    """A pair whose servers cannot be compared either, where fixed batches have not done the same work."""
    reasons = [shape.fairness.reason for shape in pair.shapes if shape.figures and shape.fairness.is_fair is False]
    if pair.serving is None or not reasons:
        return pair
    differs = (*pair.serving.differs, *dict.fromkeys(filter(None, reasons)))
    return replace(pair, serving=replace(pair.serving, differs=differs))


def _decided(
    pair: Pair, serving: ServingComparison, verdicts: dict[tuple[str, str], Verdict], rules: Rules
) -> ServingComparison:
    differs = (*pair.differs, *serving.differs)
    points = tuple(_point(point, verdicts.get((pair.other, point.name)), differs, rules) for point in serving.points)
    judged = {point.verdict for point in points}
    of_all = next((kind for kind in _ORDER if kind in judged), Verdict.NO_DIFFERENCE if points else Verdict.OPEN)
    if differs:
        of_all = Verdict.NOT_COMPARABLE
    serving = replace(serving, points=points, verdict=of_all)
    return replace(serving, sentence=serving_wording.sentence(pair, serving, rules))


def _point(point: PointComparison, judged: Verdict | None, differs: Sequence[str], rules: Rules) -> PointComparison:
    ratio = point.ratios.deciding(point.point)
    if differs:
        return replace(point, verdict=Verdict.NOT_COMPARABLE, reason=" ".join(differs))
    if ratio is None or judged is None:
        return replace(point, verdict=Verdict.OPEN, reason="It was not measured on both sides.")
    alone = verdict.of_ratio(ratio, rules)
    reason = ratio_wording.interval_sentence(ratio, alone, rules)
    if judged is not alone:
        reason += " Among so many points and arms one may lie there by chance (Holm)."
    return replace(point, verdict=judged, reason=reason)
