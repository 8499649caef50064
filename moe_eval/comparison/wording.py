"""The sentences of a verdict. Every number in them stands with its interval, where it has one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from moe_eval.comparison.allowances import allowance, bounds, drift, holds_one, is_slower
from moe_eval.records.comparison import (
    ComparedArm,
    ComparisonRecord,
    Pair,
    PairSchedule,
    QualityComparison,
    Ratio,
    ShapeComparison,
    Verdict,
)
from moe_eval.records.labels import Status

_UNFINISHED = {Status.SKIPPED: "was left out", Status.RUNNING: "did not finish"}


def summary(comparison: ComparisonRecord) -> str:
    """The verdicts as a command prints them: for every pair, its reason, and what would settle what is open."""
    lines = []
    for pair in comparison.pairs:
        lines.append(f"Verdict: {pair.sentence}")
        lines += [f"  Because: {pair.because}"] if pair.because else []
        lines += [f"  Next: {pair.settled_by}"] if pair.settled_by else []
    return "\n".join(lines) or "Verdict: there is one arm alone, and nothing to compare it with."


def ratio_text(ratio: Ratio, schedule: PairSchedule | None) -> str:
    """A ratio in words, such as "1.29x, 1.27 to 1.32"."""
    ends = [value for value in (ratio.low, ratio.high) if value is not None]
    # as many digits as it takes to see on which side of 1 each of them is, and an interval as one
    digits = next((count for count in (2, 3, 4) if _is_clear(ratio.value, ends, count)), 5)
    value = f"{ratio.value:.{digits}f}x"
    if ratio.low is None:
        return f"{value}, no interval"
    interval = f"{value}, {ratio.low:.{digits}f} to {ratio.high:.{digits}f}"
    return f"{interval} and drift besides" if drift(ratio, schedule) else interval


def _is_clear(value: float, ends: Sequence[float], digits: int) -> bool:
    distinct = len({round(end, digits) for end in ends}) == len(set(ends))
    return distinct and all(round(number, digits) != 1 or number == 1 for number in (value, *ends))


def bounds_sentence(ratio: Ratio, schedule: PairSchedule | None, predicate: str = "") -> str:
    """Where the bounds of a ratio lie, and what they allow for.

    Args:
        predicate: such as "lies above 1". Bounds that hold 1 say so first.
    """
    low, high = ratio.low, ratio.high
    if holds_one(ratio, schedule):
        if low is not None and high is not None and low <= 1 <= high:
            return f"The interval holds 1{predicate}."
        return f"The ratio may be 1{predicate} with {_allowed(ratio, schedule)}."
    if bounds(ratio, schedule) == (low, high):
        return f"The interval {predicate}."
    return f"The ratio {predicate} with {_allowed(ratio, schedule)}."


def _allowed(ratio: Ratio, schedule: PairSchedule | None) -> str:
    cause = "drift" if drift(ratio, schedule) else "difference between two processes"
    return f"{100 * (allowance(ratio, schedule) - 1):.1g} % of {cause} allowed for"


def quality_change(quality: QualityComparison | None) -> str:
    """What precision costs, such as "+0.40 % perplexity (+0.12 to +0.68)". Empty where nobody can tell."""
    if quality is None or quality.random_weights or quality.ppl_change is None:
        return ""
    text = f"{100 * quality.ppl_change:+.2f} % perplexity"
    ratio = quality.ln_ppl_ratio
    if ratio is None:
        return f"{text} (no interval)"
    return f"{text} ({100 * math.expm1(ratio.low):+.2f} to {100 * math.expm1(ratio.high):+.2f})"


def _quality_sentences(quality: QualityComparison | None) -> list[str]:
    change = quality_change(quality)
    if quality and quality.random_weights:
        return ["Quality was not judged: the weights are random."]
    if quality is None or not change:
        return ["Quality was not measured."]
    flag = [ended(capitalised(quality.flag))] if quality.flag else []
    return [f"The change in quality is {change}.", *flag]


def capitalised(text: str) -> str:
    """A text that begins with a capital letter."""
    return f"{text[:1].upper()}{text[1:]}"


def ended(text: str) -> str:
    """A text with one full stop at its end."""
    return f"{text.rstrip('. ')}."


def without_speed(pair: Pair, arms: Mapping[str, ComparedArm], emulated: Sequence[str]) -> tuple[str, str]:
    """Where there is no speed to compare: the sentences, and what would settle it."""
    if emulated:
        names = " and ".join(emulated)
        why = f"{names} {'are' if len(emulated) > 1 else 'is'} emulated, which says nothing about speed."
        settled = f"Run {names} on an engine that has it natively."
    else:
        failed = " ".join(unfinished_arms(pair, arms))
        why = failed or f"Speed was not measured of both {pair.reference} and {pair.other}."
        settled = "Start a run in which every arm finishes." if failed else "Run moe-eval perf with both arms."
    if not quality_change(pair.quality):
        return f"Inconclusive: nothing is known of {pair.other} against {pair.reference}. {why}", settled
    cost, *flag = _quality_sentences(pair.quality)
    return " ".join([f"Inconclusive, quality only. {cost}", *flag, why]), settled


def unfinished_arms(pair: Pair, arms: Mapping[str, ComparedArm]) -> list[str]:
    """A sentence for every arm of a pair that did not finish."""
    sides = arms[pair.reference], arms[pair.other]
    return [f"{unfinished(arm)}." for arm in sides if arm.status is not Status.FINISHED]


def unfinished(arm: ComparedArm) -> str:
    """What became of an arm that did not finish, such as "fp8 failed (out of memory)"."""
    ending = _UNFINISHED.get(arm.status, arm.status.value)
    return f"{arm.name} {ending}" + (f" ({arm.error.rstrip('.')})" if arm.error else "")


def with_speed(pair: Pair, shapes: Sequence[ShapeComparison], verdict: Verdict) -> str:
    """The verdict by batch size, and what it costs in quality. `shapes` were timed on both sides, by size."""
    paying = [shape for shape in shapes if shape.verdict is Verdict.PAYS]
    remaining = [_shape_sentence(shape, shapes, pair.schedule) for shape in shapes if shape not in paying]
    if paying:
        subject = pair.other if verdict is Verdict.PAYS else f"{pair.other} does not pay at every batch size. It"
        head = f"{subject} pays {_paying(paying, shapes, pair.schedule)}"
    else:
        head = f"{pair.other} {'does not pay' if verdict is Verdict.DOES_NOT_PAY else 'may pay or not'}."
    return " ".join([head, *remaining, *_quality_sentences(pair.quality)])


def _paying(paying: Sequence[ShapeComparison], shapes: Sequence[ShapeComparison], schedule: PairSchedule | None) -> str:
    """Where an arm pays, after the word."""
    smallest, best = paying[0], max(paying, key=lambda shape: shape.speed.e2e_ms.value if shape.speed.e2e_ms else 0.0)
    places = [f"{place(shape, shapes)} ({_e2e_text(shape, schedule)})" for shape in paying]
    to_the_end = list(shapes[len(shapes) - len(paying) :]) == list(paying) and len(shapes) > 1
    if not (to_the_end and _has_one_shape_per_batch(shapes)):
        return f"{', '.join(places)}."
    where = f"from batch {smallest.batch_size} on"
    if len(paying) == len(shapes):
        where = f"at every batch size measured, {where}"
    text = f"{where} ({_e2e_text(smallest, schedule)})."
    if best is smallest:
        return text
    return f"{text} The gain is largest {place(best, shapes)} ({_e2e_text(best, schedule)})."


def _e2e_text(shape: ShapeComparison, schedule: PairSchedule | None) -> str:
    return ratio_text(shape.speed.e2e_ms, schedule) if shape.speed.e2e_ms else "not timed"


def _shape_sentence(shape: ShapeComparison, shapes: Sequence[ShapeComparison], schedule: PairSchedule | None) -> str:
    """One shape that does not pay, such as "At batch 1 the result is open (1.01x, 0.90 to 1.13)."."""
    where, ratio = capitalised(place(shape, shapes)), shape.speed.e2e_ms
    if shape.verdict is Verdict.NOT_COMPARABLE or ratio is None:
        return f"{where} there is no verdict. {shape.reason}"
    number = ratio_text(ratio, schedule)
    if shape.verdict is Verdict.INCONCLUSIVE:
        return f"{where} the result is open ({number})."
    if is_slower(shape, schedule):
        return f"{where} it is slower ({number})."
    return f"{where} it does not pay ({number}). {bounds_sentence(ratio, schedule)}"


def repeat(pair: Pair, shapes: Sequence[ShapeComparison]) -> str:
    """An arm against itself: what has to come out as 1."""
    ratios = [f"{place(shape, shapes)} ({_e2e_text(shape, pair.schedule)})" for shape in shapes]
    moved = [
        place(shape, shapes)
        for shape in shapes
        if shape.speed.e2e_ms and not holds_one(shape.speed.e2e_ms, pair.schedule)
    ]
    cause = "something disturbs the measurement"
    if pair.schedule is not None and not pair.schedule.one_run:
        cause = "something changed between the two runs, or something disturbed the measurement"
    end = f"The ratio is not 1 {' and '.join(moved)}, so {cause}." if moved else "The ratio is 1 within the intervals."
    return f"{pair.other} is {pair.reference} measured a second time: {', '.join(ratios)}. {end}"


def place(shape: ShapeComparison, shapes: Iterable[ShapeComparison]) -> str:
    """Where a shape is: its batch size where that names it, else its name."""
    return f"at batch {shape.batch_size}" if _has_one_shape_per_batch(shapes) else f"at {shape.name}"


def _has_one_shape_per_batch(shapes: Iterable[ShapeComparison]) -> bool:
    sizes = [shape.batch_size for shape in shapes]
    return len(set(sizes)) == len(sizes)
