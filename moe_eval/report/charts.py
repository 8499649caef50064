"""Which charts a comparison gives, and what is said under each. What says nothing is not drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from moe_eval.comparison.explained import explains
from moe_eval.records.comparison import ComparedArm, ComparisonRecord, Pair, QualityComparison
from moe_eval.records.ratios import Interval
from moe_eval.records.shape_comparison import PhaseChange, ShapeComparison
from moe_eval.records.verdicts import Rules, Verdict
from moe_eval.report import arm_tables, bars, points, readable
from moe_eval.report.bars import StepTimes
from moe_eval.report.drawing import Chart
from moe_eval.report.points import Point, Series
from moe_eval.report.text import comparable, finite, interval_head, named, plain, with_speed

Lengths = tuple[int | None, int | None]


def speed(comparison: ComparisonRecord) -> list[Chart]:
    """Output tokens a second of all arms by batch size, for every pair of lengths, that of the headlines first."""
    decisive = [shape for pair in comparison.pairs for shape in pair.shapes if shape.name in _headline_shapes(pair)]
    shapes = [shape for pair in with_speed(comparison) for shape in pair.shapes]
    lengths = list(dict.fromkeys(map(_lengths, [*decisive, *shapes])))
    return [chart for pair_of_lengths in lengths if (chart := _speed_chart(comparison, pair_of_lengths))]


def _headline_shapes(pair: Pair) -> set[str | None]:
    return {headline.shape for headline in pair.headlines}


def _lengths(shape: ShapeComparison) -> Lengths:
    return shape.input_len, shape.output_len


def _speed_chart(comparison: ComparisonRecord, lengths: Lengths) -> Chart | None:
    """None where fewer than two batch sizes were timed, or only emulated arms."""
    arms = {arm.name: arm for arm in comparison.arms}
    timed = [
        (pair, shape, rates)
        for pair in with_speed(comparison)
        for shape in pair.shapes
        if _lengths(shape) == lengths
        and _times(shape, comparison.rules)
        and None not in (rates := [_rate(arms.get(name), shape) for name in (pair.reference, pair.other)])
    ]
    drawn = [entry for entry in timed if entry[1].verdict is not Verdict.NOT_COMPARABLE]
    void = [
        f"{named(pair.other)} at batch {shape.batch_size}"
        for pair, shape, _ in timed
        if shape.verdict is Verdict.NOT_COMPARABLE
    ]
    has_labels = len({pair.other for pair, _, _ in drawn}) == 1
    by_arm: dict[str, dict[int, Point]] = {}
    for pair, shape, rates in drawn:
        for name, rate in zip((pair.reference, pair.other), rates, strict=True):
            if rate is not None and shape.batch_size is not None:
                times = _times(shape, comparison.rules) if name == pair.other else ""
                by_arm.setdefault(name, {})[shape.batch_size] = _rate_point(rate, times, is_labelled=has_labels)
    series = [
        Series(index, named(arm.name), by_arm[arm.name])
        for index, arm in enumerate(comparison.arms)
        if arm.name in by_arm
    ]
    intervals = [rate for _, _, rates in drawn for rate in rates if rate and rate.low is not None]
    caption = f"Whiskers: {interval_head(intervals)}." if intervals else "A hollow marker has no interval."
    caption += f" Labels: times that of {named(comparison.reference)}." if has_labels else ""
    caption += f" Left out, as it cannot be compared: {', '.join(void)}." if void else ""
    return points.speed("Speed, {} tokens in, {} out".format(*map(named, lengths)), series, caption)


def _rate(arm: ComparedArm | None, shape: ShapeComparison) -> Interval | None:
    """Output tokens a second on each GPU. None where they were not measured, or cannot stand on a logarithmic axis."""
    rate = arm.speed.get(shape.name, {}).get("output_tok_s") if arm and not arm.emulated else None
    if rate is None or (finite(rate.median) or 0) <= 0:
        return None
    has_interval = finite(rate.high) is not None and (finite(rate.low) or 0) > 0
    return (rate if has_interval else Interval(rate.median)).per((arm.gpus if arm else None) or 1)


def _rate_point(rate: Interval, times: str, *, is_labelled: bool) -> Point:
    text = "{} ({})".format(*readable.with_interval(rate, " tok/s"))
    return Point(rate.median, rate.low, rate.high, f"{text}, {times}" if times else text, times if is_labelled else "")


def _times(shape: ShapeComparison, rules: Rules) -> str:
    """How many times as many tokens a second an arm gives on each GPU."""
    ratio = shape.speed.output_tok_s_per_gpu or shape.speed.e2e_ms
    if ratio is None or finite(ratio.value) is None:
        return ""
    return readable.factor(ratio.value, ratio.low, ratio.high, rules.min_gain)[0]


def steps(comparison: ComparisonRecord) -> Chart | None:
    """The time of a step by category, with the difference: of the shape of the headlines, if that was traced."""
    traced = list(_traced(comparison))
    if not traced:
        return None
    decisive = {name for pair in comparison.pairs for name in _headline_shapes(pair)}
    phases = ("prefill", "decode") if comparison.rules.decide_on == "ttft" else ("decode", "prefill")
    shape, phase = max(
        ((shape, phase) for shape, phase, _ in traced),
        key=lambda key: (key[0] in decisive, -phases.index(key[1]) if key[1] in phases else -len(phases)),
    )
    arms = {times.name: times for name, of_phase, times in traced if (name, of_phase) == (shape, phase)}
    ordered = sorted(arms.values(), key=lambda times: times.index)
    grey = [times.name for times in ordered if times.is_grey]
    caption = "Medians of a trace. In brackets: the difference from " + f"{named(comparison.reference)}. "
    caption = caption if len(ordered) > 1 else "Medians of a trace. "
    caption += f"Grey: the kernels do not explain the measured speed of {', '.join(grey)}." if grey else ""
    return bars.steps(f"Time of a {plain(phase)} step, {readable.shape_words(shape)}", ordered, caption.strip())


def _traced(comparison: ComparisonRecord) -> Iterator[tuple[str, str, StepTimes]]:
    """Shape, phase and times of every arm that was traced."""
    index_of = {arm.name: index for index, arm in enumerate(comparison.arms)}
    for pair in comparable(comparison):
        for shape in pair.shapes:
            for phase, breakdown in (shape.breakdown or {}).items():
                change = (shape.kernels or {}).get(phase)
                for side, name in enumerate((pair.reference, pair.other)):
                    ms = {readable.category(key): finite(sides[side]) or 0.0 for key, sides in breakdown.items()}
                    ms |= {"nothing runs": idle[side]} if (idle := _idle(change)) else {}
                    is_grey = side == 1 and change is not None and explains(change) is False
                    yield shape.name, phase, StepTimes(index_of.get(name, 0), named(name), ms, is_grey)
    for arm, shape_name, phase, times in arm_tables.traced(comparison):
        ms = {readable.category(key): finite(value) or 0.0 for key, value in times.items()}
        yield shape_name, phase, StepTimes(index_of.get(arm.name, 0), named(arm.name), ms)


def _idle(change: PhaseChange | None) -> Sequence[float]:
    """ms of a step in which nothing runs, before and after. Empty where the trace does not tell."""
    if change is None or change.step_ms is None or change.idle_share is None:
        return ()
    return [step * share for step, share in zip(change.step_ms, change.idle_share, strict=True)]


def quality(comparison: ComparisonRecord) -> Chart | None:
    """The change of perplexity with intervals and the noise floor. Scores of random weights are not drawn."""
    reference = named(comparison.reference)
    index_of = {arm.name: index for index, arm in enumerate(comparison.arms)}
    costs = {
        pair.other: cost
        for pair in comparable(comparison)
        if (cost := pair.quality) is not None and not cost.random_weights and finite(cost.ppl_change) is not None
    }
    series = [Series(index_of.get(name, 0), named(name), {0: _change(cost)}) for name, cost in costs.items()]
    floor = max((cost.largest_noise for cost in costs.values() if cost.noise_floor), default=None)
    noise = None if floor is None else 100 * math.expm1(floor)
    caption = "Whiskers: 95 % intervals."
    if noise is not None:
        caption += f" Band: the noise floor of {readable.significant(noise)} %, from another batch size."
    return points.quality(f"Perplexity against {reference}", series, noise, caption)


def _change(cost: QualityComparison) -> Point:
    """The change of perplexity in percent."""
    value, ratio = 100 * (cost.ppl_change or 0.0), cost.ln_ppl_ratio
    low, high = (100 * math.expm1(ratio.low), 100 * math.expm1(ratio.high)) if ratio else (None, None)
    text, bounds = readable.change(value, low, high)
    return Point(value, finite(low), finite(high), f"{text} ({bounds or 'no interval'})")
