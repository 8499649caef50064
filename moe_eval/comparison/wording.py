"""The sentences of a verdict. Every number in them stands with its interval, where it has one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from moe_eval.comparison import task_wording
from moe_eval.data import served_requests
from moe_eval.records.comparison import ComparedArm, ComparisonRecord, Pair
from moe_eval.records.labels import Status
from moe_eval.records.ratios import Ratio
from moe_eval.records.run import LEAST_WARM_UPS
from moe_eval.records.shape_comparison import ShapeComparison
from moe_eval.records.verdicts import DecidingTime, Rules, Verdict
from moe_eval.stats import LEAST_LOADS

_UNFINISHED = {Status.SKIPPED: "was left out", Status.RUNNING: "did not finish"}
_DECIDING: Mapping[DecidingTime, str] = {
    "e2e": "end to end",
    "ttft": "to the first token",
    "tpot": "per output token",
    "output_tok_s": "in output tokens per second",
    "output_tok_s_per_gpu": "in output tokens per second and GPU",
}
_FIGURES = {
    "e2e_ms": "end-to-end time",
    "ttft_ms": "time to first token",
    "tpot_ms": "time per output token",
    "j_per_tok": "energy per token",
}
_MOST_DIGITS = 6
_LEAST_GIB = 0.05  # less is not seen in what is printed


def summary(comparison: ComparisonRecord, leading: ComparisonRecord | None = None) -> str:
    """The verdicts as a command prints them: for every pair, its reason, and what would settle what is open.

    Args:
        leading: the part of the comparison that has sentences, where there are too many pairs for all.
    """
    lines = []
    failure = _common_failure(comparison)
    if failure is not None:
        return f"Open: all arms failed for one reason. {failure}"
    leading = leading or comparison
    for pair in leading.pairs:
        lines.append(verdict_line(pair))
        lines += [f"  Because: {pair.because}"] if pair.because else []
        lines += [f"  Next: {pair.settled_by}"] if pair.settled_by else []
    return "\n".join([*(lines or verdict_lines(comparison)), *_costs(leading)])


def verdict_lines(comparison: ComparisonRecord) -> list[str]:
    """The verdict of every arm in a line. Of one arm alone, that there is none."""
    names = [arm.name for arm in comparison.arms]
    alone = f"{names[0]} was measured alone, and there is nothing to compare it with." if names else "No arm was run."
    return [verdict_line(pair) for pair in comparison.pairs] or [alone]


def verdict_line(pair: Pair) -> str:
    """The verdict of a pair in a line that begins with the arm's name."""
    is_named = pair.sentence.startswith(f"{pair.other} ")
    return pair.sentence if is_named else f"{pair.other}: {pair.sentence}"


def _common_failure(comparison: ComparisonRecord) -> str | None:
    """The one reason why all of several arms failed before anything was measured."""
    if any(arm.speed or arm.token_ppl for arm in comparison.arms):
        return None
    errors = {arm.error if arm.status is Status.FAILED else None for arm in comparison.arms}
    error = next(iter(errors)) if len(errors) == 1 and len(comparison.arms) > 1 else None
    return ended(capitalised(error)) if error else None


def _costs(comparison: ComparisonRecord) -> Iterator[str]:
    """What a million output tokens cost, a line for every shape."""
    for shape in dict.fromkeys(shape for arm in comparison.arms for shape in arm.cost):
        costs = ", ".join(f"{arm.name} {arm.cost[shape].median:.4g}" for arm in comparison.arms if shape in arm.cost)
        price = f"{comparison.rules.price_per_gpu_hour:g} per GPU and hour"
        yield f"Cost of a million output tokens at {shape}, for {price}: {costs}."


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
        least = f"{100 * rules.min_gain:.10g} %"
        return f"It is faster by less than {least}." if is_faster else f"The interval stays within {least} of 1."
    return f"It is faster. Whether by {gain}x is open." if is_faster else "The interval holds 1."


def _are(loads: int) -> str:
    return "is 1" if loads == 1 else f"are {loads}"


def remarks(shape: ShapeComparison) -> Iterator[str]:
    """What a reader of a shape's verdict has to know."""
    if shape.fairness.is_fair is None:
        yield f"Whether both went through as many experts was not checked ({shape.fairness.reason})."
    if shape.clocks and shape.clocks.is_one_slow:
        yield "One arm alone had iterations at a low clock. They do not decide."


def _quality_sentence(pair: Pair) -> str:
    """What is lost by the scores of tokens and in tasks."""
    tasks = task_wording.sentences(pair.tasks)
    if pair.quality is None and tasks:
        return " ".join(tasks)
    tokens = pair.quality.sentence if pair.quality else "Quality was not measured on both sides."
    return " ".join([tokens, *tasks])


def with_quality(pair: Pair, sentence: str) -> str:
    """A sentence with what is lost."""
    return f"{sentence} {_quality_sentence(pair)}"


def broken(pair: Pair, arms: Mapping[str, ComparedArm]) -> str:
    """The verdict on a pair of which an arm is broken, and in what."""
    failed = [
        f"{arm.name} gives no probabilities. {ended(capitalised(arm.broken))}"
        for arm in _sides(pair, arms)
        if arm.broken
    ]
    why = " ".join(failed) or _quality_sentence(pair)
    return f"Broken: {why} A broken arm has no speed."


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
        settled = "" if pair.tasks else "Run moe-eval perf with both arms."
        settled = "Start a run in which every arm finishes." if failed else settled
    if pair.quality is None and not pair.tasks:
        return f"Open: nothing is known of {pair.other} against {pair.reference}. {why}", settled
    return f"Quality only, the speed of {pair.other} is open. {_quality_sentence(pair)} {why}", settled


def _sides(pair: Pair, arms: Mapping[str, ComparedArm]) -> tuple[ComparedArm, ComparedArm]:
    return arms[pair.reference], arms[pair.other]


def unfinished_arms(pair: Pair, arms: Mapping[str, ComparedArm]) -> list[str]:
    """A sentence for every arm of a pair that did not finish."""
    failed = [arm for arm in _sides(pair, arms) if arm.status is not Status.FINISHED]
    if len({(arm.status, arm.error) for arm in failed}) < len(failed):
        return [f"{unfinished(replace(failed[0], name=' and '.join(arm.name for arm in failed)))}."]
    return [f"{unfinished(arm)}." for arm in failed]


def unfinished(arm: ComparedArm) -> str:
    """What became of an arm that did not finish, such as "fp8 failed (out of memory)"."""
    ending = _UNFINISHED.get(arm.status, arm.status.value)
    return f"{arm.name} {ending}" + (f" ({arm.error.rstrip('.')})" if arm.error else "")


def with_speed(
    pair: Pair, shapes: Sequence[ShapeComparison], verdict: Verdict, arms: Mapping[str, ComparedArm], rules: Rules
) -> str:
    """The verdict at every shape, what is worse nevertheless, and what it costs in quality.

    Args:
        shapes: that were timed on both sides, by size.
    """
    name, metric = pair.other, _deciding(pair, shapes, arms, rules)
    heads = {
        Verdict.PAYS: f"{name} pays {{where}}, {metric}",
        Verdict.SLOWER: f"{name} is slower {{where}}, {metric}",
        Verdict.NO_DIFFERENCE: f"{name} makes no worthwhile difference {{where}}, {metric}",
        Verdict.OPEN: f"Whether {name} pays {{where}}, {metric}, is open",
        Verdict.QUICK_LOOK: f"Quick look, no verdict: {name} against {pair.reference} {{where}}, {metric}",
    }
    later = {
        **heads,
        Verdict.PAYS: "It pays {where}",
        Verdict.SLOWER: "It is slower {where}",
        Verdict.NO_DIFFERENCE: "It makes no worthwhile difference {where}",
        Verdict.OPEN: "The result is open {where}",
    }
    sentences: list[str] = []
    for kind in sorted(heads, key=lambda kind: kind is not verdict):
        group = [shape for shape in shapes if shape.verdict is kind]
        if group:
            where = _where(group, shapes)
            sentences.append(f"{(later if sentences else heads)[kind].format(where=where)}: {_ratios(group, rules)}.")
    for shape in shapes:
        if shape.verdict is Verdict.NOT_COMPARABLE:
            sentences.append(f"{capitalised(place(shape, shapes))} there is no verdict. {shape.reason}")
    notes = [note for shape in shapes if shape.verdict is not Verdict.NOT_COMPARABLE for note in remarks(shape)]
    if pair.schedule and not pair.schedule.one_run:
        notes.append("The arms are of two runs, so 5 % are allowed for what differs between runs.")
    return " ".join([*sentences, *_worse(pair, shapes, arms, rules), *dict.fromkeys(notes), _quality_sentence(pair)])


def _deciding(pair: Pair, shapes: Sequence[ShapeComparison], arms: Mapping[str, ComparedArm], rules: Rules) -> str:
    """By which figure arms are judged, and why by output per GPU."""
    if all(shape.speed.decided_by(rules) != "output_tok_s_per_gpu" for shape in shapes):
        return _DECIDING[rules.decide_on]
    counts = [f"{arm.name} has {arm.gpus}" for arm in reversed(_sides(pair, arms))]
    return f"{_DECIDING['output_tok_s_per_gpu']} ({' and '.join(counts)})"


def _where(group: Sequence[ShapeComparison], shapes: Sequence[ShapeComparison]) -> str:
    """Where shapes are, such as "from batch 8 on"."""
    if len(group) == len(shapes) > 1:
        return "at every batch size measured" if _has_one_shape_per_batch(shapes) else "at every shape measured"
    is_to_the_end = list(shapes[len(shapes) - len(group) :]) == list(group)
    if is_to_the_end and len(group) > 1 and _has_one_shape_per_batch(shapes):
        return f"from batch {group[0].batch_size} on"
    return _joined([place(shape, shapes) for shape in group])


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def _ratios(group: Sequence[ShapeComparison], rules: Rules) -> str:
    """The deciding ratio of every shape."""
    texts = [ratio_text(ratio, rules) for shape in group if (ratio := shape.speed.deciding(rules))]
    return (
        texts[0]
        if len(texts) == 1
        else ", ".join(f"{text} {place(s, group)}" for text, s in zip(texts, group, strict=True))
    )


def _worse(
    pair: Pair, shapes: Sequence[ShapeComparison], arms: Mapping[str, ComparedArm], rules: Rules
) -> Iterator[str]:
    """Everything but the deciding time that is worse beyond its interval, and more memory."""
    for figure, name in _FIGURES.items():
        if all(shape.speed.decided_by(rules) == figure for shape in shapes):
            continue
        group = [
            f"{ratio_text(ratio, rules)} {place(shape, shapes)}"
            for shape in shapes
            if (ratio := getattr(shape.speed, figure))
            and ratio.loads >= LEAST_LOADS
            and ratio.high < 1
            and shape.verdict is not Verdict.NOT_COMPARABLE
        ]
        if group:
            yield f"Worse is its {name}: {', '.join(group)}."
    weights = [arm.weights_gib for arm in _sides(pair, arms)]
    if weights[0] and weights[1] and weights[1] > max(1.005 * weights[0], weights[0] + _LEAST_GIB):
        yield f"Its weights take more memory: {weights[1]:.1f} GiB, and {weights[0]:.1f} in {pair.reference}."


def repeat(pair: Pair, shapes: Sequence[ShapeComparison], rules: Rules) -> str:
    """An arm against itself: what has to come out as 1."""
    moved = [place(shape, shapes) for shape in shapes if shape.verdict in (Verdict.PAYS, Verdict.SLOWER)]
    cause = "something disturbs the measurement"
    if pair.schedule is not None and not pair.schedule.one_run:
        cause = "something changed between the two runs, or something disturbed the measurement"
    end = f"The ratio is not 1 {_joined(moved)}, so {cause}." if moved else "No difference was found."
    if all(shape.verdict is Verdict.QUICK_LOOK for shape in shapes):
        end = "This is a quick look, no verdict."
    return f"{pair.other} is {pair.reference} measured a second time: {_ratios(shapes, rules)}. {end}"


def place(shape: ShapeComparison, shapes: Iterable[ShapeComparison]) -> str:
    """Where a shape is: its batch size where that names it, or the load of a traced server, else its name."""
    is_batch = shape.batch_size is not None and _has_one_shape_per_batch(shapes)
    point = served_requests.point_of(shape.name)
    return f"at batch {shape.batch_size}" if is_batch else point.place if point else f"at {shape.name}"


def _has_one_shape_per_batch(shapes: Iterable[ShapeComparison]) -> bool:
    sizes = [shape.batch_size for shape in shapes]
    return len(set(sizes)) == len(sizes)
