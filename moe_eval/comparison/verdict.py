"""What a comparison comes to: rules over its numbers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from moe_eval import stats
from moe_eval.comparison import ratio_wording, speed_wording, wording
from moe_eval.comparison.because import because
from moe_eval.records.comparison import ComparedArm, ComparisonRecord, Pair
from moe_eval.records.ratios import Ratio
from moe_eval.records.run import LEAST_WARM_UPS
from moe_eval.records.serving_comparison import ServingComparison
from moe_eval.records.shape_comparison import ShapeComparison
from moe_eval.records.verdicts import QualityVerdict, Rules, Verdict
from moe_eval.stats import ERROR_RATE, LEAST_LOADS

_QUIETER = "Give more --loads, with nothing else on the machine."
_MOST_LOADS = 64  # more than anybody waits for


def decide(pairs: Sequence[Pair], arms: Mapping[str, ComparedArm], rules: Rules) -> list[Pair]:
    """Pairs with the verdict on each and on its shapes.

    In all pairs together some shape "pays" that does not in at most ERROR_RATE of runs, and so with "slower": Holm's
    procedure over shapes and arms. An arm that was measured twice is a family of its own.

    A pair is broken where its quality is. It is slower where a shape is, else it pays where a shape does, else it is
    open where a shape is. An emulated arm has no speed, so there the verdict is open.
    """
    verdicts = {
        key: verdict
        for is_repeat in (False, True)
        for key, verdict in _of_family([pair for pair in pairs if pair.is_repeat is is_repeat], rules).items()
    }
    return [_decided(pair, arms, rules, verdicts) for pair in pairs]


def is_decided(comparison: ComparisonRecord) -> bool:
    """Whether more loads would change no verdict from open: those of shapes that were timed on both sides.

    A broken arm stays so, however often it is loaded.
    """
    undecided = (Verdict.OPEN, Verdict.QUICK_LOOK)
    pairs = [pair for pair in comparison.pairs if pair.verdict is not Verdict.BROKEN]
    return not any(shape.verdict in undecided for pair in pairs for shape in _timed(pair, comparison.rules))


def of_ratio(ratio: Ratio, rules: Rules) -> Verdict:
    """The verdict on one ratio by its interval, apart from any other shape or arm.

    It pays where the interval lies above the least gain, and is slower where it lies below 1. There is no worthwhile
    difference where it lies within the least gain either way (two one-sided tests). Fewer than LEAST_LOADS make a quick
    look.
    """
    if ratio.loads < LEAST_LOADS or ratio.low is None or ratio.high is None:
        return Verdict.QUICK_LOOK
    if ratio.low > 1 + rules.min_gain:
        return Verdict.PAYS
    if ratio.high < 1:
        return Verdict.SLOWER
    return Verdict.NO_DIFFERENCE if _is_small(ratio, rules) else Verdict.OPEN


def _is_small(ratio: Ratio, rules: Rules) -> bool:
    """Whether the interval lies within the least gain either way."""
    gain = 1 + rules.min_gain
    return ratio.low is not None and ratio.high is not None and ratio.low >= 1 / gain and ratio.high <= gain


def p_value(ratio: Ratio, bound: float, *, is_above: bool) -> float:
    """The chance of a ratio this far above (or below) a bound, where the truth is no farther than the bound.

    A look of a run until decided has a part of the error rate alone, so its p-values are greater by as much. It is 1
    where there is no interval.
    """
    if ratio.error is None or ratio.df is None:
        return 1.0
    if bound <= 0:  # every ratio lies above
        return 0.0 if is_above else 1.0
    sign = 1 if is_above else -1
    value, limit = sign * math.log(ratio.value), sign * math.log(bound) + math.log(ratio.widened)
    p_of_look = stats.p_above(value, ratio.error, ratio.df, limit)
    return min(1.0, p_of_look * 2 * ERROR_RATE / (1 - ratio.confidence))


def of_family(ratios: Sequence[Ratio], rules: Rules) -> list[Verdict]:
    """The verdicts on ratios that one run claims together.

    A gain or a loss that Holm's procedure does not confirm among all of them is open. Such a loss within the least gain
    makes no worthwhile difference.
    """
    verdicts = [of_ratio(ratio, rules) for ratio in ratios]
    judged = [index for index, verdict in enumerate(verdicts) if verdict is not Verdict.QUICK_LOOK]
    for claim, bound, is_above in ((Verdict.PAYS, 1 + rules.min_gain, True), (Verdict.SLOWER, 1.0, False)):
        if claim not in verdicts:
            continue
        p_values = [p_value(ratios[index], bound, is_above=is_above) for index in judged]
        for index, is_confirmed in zip(judged, stats.holm(p_values, ERROR_RATE), strict=True):
            if verdicts[index] is claim and not is_confirmed:
                verdicts[index] = Verdict.NO_DIFFERENCE if _is_small(ratios[index], rules) else Verdict.OPEN
    return verdicts


def _of_family(pairs: Sequence[Pair], rules: Rules) -> dict[tuple[str, str], Verdict]:
    ratios = {
        (pair.other, shape.name): ratio
        for pair in pairs
        for shape in _timed(pair, rules)
        if (ratio := shape.speed.deciding(rules)) and shape.fairness.is_fair is not False
    }
    return dict(zip(ratios, of_family(list(ratios.values()), rules), strict=True))


def _timed(pair: Pair, rules: Rules) -> list[ShapeComparison]:
    """The shapes that were timed on both sides."""
    return [shape for shape in pair.shapes if shape.speed.deciding(rules) is not None]


def _of_shape(shape: ShapeComparison, rules: Rules, verdict: Verdict | None) -> tuple[Verdict, str]:
    """The verdict on one shape and its reason.

    Args:
        verdict: among all shapes and arms. None where there is nothing to judge.
    """
    ratio = shape.speed.deciding(rules)
    if ratio is None:
        return Verdict.OPEN, "It was not timed on both sides."
    if shape.fairness.is_fair is False or verdict is None:
        return Verdict.NOT_COMPARABLE, shape.fairness.reason or ""
    alone = of_ratio(ratio, rules)
    if shape.clocks and shape.clocks.is_one_slow:
        fast = shape.unthrottled.deciding(rules) if shape.unthrottled else None
        if fast is None or of_ratio(fast, rules) is not alone:
            return Verdict.NOT_COMPARABLE, "Iterations at a low clock, which one arm alone had, decide."
    sentences = [ratio_wording.interval_sentence(ratio, alone, rules)]
    if verdict is not alone:
        sentences.append("Among so many shapes and arms one may lie there by chance (Holm).")
    return verdict, " ".join([*sentences, *speed_wording.remarks(shape)])


def _decided(
    pair: Pair, arms: Mapping[str, ComparedArm], rules: Rules, verdicts: Mapping[tuple[str, str], Verdict]
) -> Pair:
    shapes = []
    for shape in pair.shapes:
        verdict, reason = _of_shape(shape, rules, verdicts.get((pair.other, shape.name)))
        if pair.differs:
            verdict, reason = Verdict.NOT_COMPARABLE, " ".join(pair.differs)
        shapes.append(replace(shape, verdict=verdict, reason=reason))
    pair = replace(pair, shapes=tuple(shapes))
    timed = _timed(pair, rules)
    emulated = [name for name in (pair.reference, pair.other) if arms[name].emulated]
    differs = list(pair.differs)
    is_broken = _is_broken(pair, arms)  # where a broken arm's routing has collapsed as well, this is the cause
    if timed and not emulated and not is_broken and all(s.verdict is Verdict.NOT_COMPARABLE for s in timed):
        differs = differs or list(dict.fromkeys(shape.reason for shape in timed))
    reason, settled_by = "", None
    if differs:
        verdict = Verdict.NOT_COMPARABLE
        sentence = " ".join([f"{pair.other} cannot be compared with {pair.reference}.", *differs])
        settled_by = pair.settled_by
    elif is_broken:
        verdict, sentence = Verdict.BROKEN, wording.broken(pair, arms)
    elif pair.serving is not None and not timed and not emulated:
        verdict, sentence, settled_by = _under_load(pair, pair.serving, arms, rules)
        reason = because(pair, [shape for shape in pair.shapes if shape.kernels], rules)
    elif emulated or not timed:
        verdict = Verdict.OPEN
        sentence, settled_by = wording.without_speed(pair, arms, emulated)
    elif pair.is_repeat:
        verdict, sentence = _of_shapes(timed), speed_wording.repeat(pair, timed, rules)
        settled_by = _settled_by(pair, timed, rules)
        if verdict in (Verdict.PAYS, Verdict.SLOWER):
            verdict, settled_by = Verdict.OPEN, _QUIETER
    else:
        verdict = _of_shapes(timed)
        sentence = " ".join(
            [speed_wording.with_speed(pair, timed, verdict, arms, rules), *wording.unfinished_arms(pair, arms)]
        )
        reason = because(pair, timed, rules)
        settled_by = _settled_by(pair, timed, rules)
    if pair.serving is not None and timed and verdict not in (Verdict.NOT_COMPARABLE, Verdict.BROKEN):
        sentence = f"{sentence} {pair.serving.sentence}"
        settled_by = settled_by or _settled_under_load(pair.serving, rules)
    if pair.contrast and verdict not in (Verdict.NOT_COMPARABLE, Verdict.BROKEN):
        sentence = f"{sentence} This is {pair.contrast}."
    return replace(
        pair, verdict=verdict, sentence=sentence, because=reason, settled_by=settled_by, differs=tuple(differs)
    )


def _under_load(
    pair: Pair, serving: ServingComparison, arms: Mapping[str, ComparedArm], rules: Rules
) -> tuple[Verdict, str, str | None]:
    """The verdict on a pair of which servers alone were measured, its sentence, and what would settle it."""
    sentence = " ".join([serving.sentence, *wording.unfinished_arms(pair, arms)])
    verdict, settled_by = serving.verdict, _settled_under_load(serving, rules)
    if pair.is_repeat and verdict in (Verdict.PAYS, Verdict.SLOWER):
        verdict, settled_by = Verdict.OPEN, _QUIETER
    return verdict, wording.with_quality(pair, sentence), settled_by


def _settled_under_load(serving: ServingComparison, rules: Rules) -> str | None:
    """What would decide the load points that are open. None where none is."""
    undecided = (Verdict.OPEN, Verdict.QUICK_LOOK)
    ratios = [point.ratios.deciding(point.point) for point in serving.points if point.verdict in undecided]
    if not ratios:
        return None
    judged = [ratio for ratio in ratios if ratio]
    if len(judged) < len(ratios):
        return "Give --resume, which measures again what failed."
    loads = max(_loads_needed(ratio, rules) for ratio in judged)
    if loads > _MOST_LOADS:
        return f"It takes more than {_MOST_LOADS} loads. Look for what disturbs the measurement first."
    return f"Give --loads {loads} for more loads."


def _is_broken(pair: Pair, arms: Mapping[str, ComparedArm]) -> bool:
    is_unscorable = any(arms[name].broken for name in (pair.reference, pair.other))
    return is_unscorable or (pair.quality is not None and pair.quality.verdict is QualityVerdict.BROKEN)


def _of_shapes(shapes: Sequence[ShapeComparison]) -> Verdict:
    """The first of these verdicts that a shape has."""
    verdicts = {shape.verdict for shape in shapes}
    order = (Verdict.SLOWER, Verdict.PAYS, Verdict.OPEN, Verdict.QUICK_LOOK)
    return next((verdict for verdict in order if verdict in verdicts), Verdict.NO_DIFFERENCE)


def _settled_by(pair: Pair, shapes: Sequence[ShapeComparison], rules: Rules) -> str | None:
    """What would decide the shapes that are open. None where none is."""
    undecided = [shape for shape in shapes if shape.verdict in (Verdict.OPEN, Verdict.QUICK_LOOK)]
    if not undecided:
        return None
    if pair.schedule is None or not pair.schedule.one_run:
        return "Measure both arms in one run."
    ratios = [ratio for shape in undecided if (ratio := shape.speed.deciding(rules))]
    if any(ratio.loads >= LEAST_LOADS and ratio.low is None for ratio in ratios):
        return f"Give --warmup_iterations {LEAST_WARM_UPS} or more."
    loads = max(_loads_needed(ratio, rules) for ratio in ratios)
    if loads > _MOST_LOADS:
        return f"It takes more than {_MOST_LOADS} loads. Look for what disturbs the measurement first."
    return f"Give --loads {loads} for more loads."


def _loads_needed(ratio: Ratio, rules: Rules) -> int:
    """How many loads make the interval narrow enough, if they scatter as those there are.

    Its half width is t(n - 1) s / sqrt(n) with Student's t, all in logarithms. It has to get below the distance from
    the nearest verdict: above the least gain, below 1, or within the least gain either way.
    """
    if ratio.error is None or ratio.loads < LEAST_LOADS:
        return LEAST_LOADS + 1
    value, gain = math.log(ratio.value), math.log1p(rules.min_gain)
    enough = max(value - gain, -value, gain - abs(value)) - math.log(ratio.widened)
    scatter = ratio.error * math.sqrt(ratio.loads)
    counts = range(ratio.loads + 1, _MOST_LOADS + 1)
    return next((count for count in counts if stats.reach(count) * scatter < enough), _MOST_LOADS + 1)
