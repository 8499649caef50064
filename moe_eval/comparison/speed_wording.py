"""The sentences of a verdict on speed: where an arm pays, and what is worse nevertheless."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from moe_eval.comparison.ratio_wording import ratio_text
from moe_eval.comparison.wording import capitalised, quality_sentence, sides
from moe_eval.data import served_requests
from moe_eval.records.comparison import ComparedArm, Pair
from moe_eval.records.shape_comparison import ShapeComparison
from moe_eval.records.verdicts import DecidingTime, Rules, Verdict
from moe_eval.stats import LEAST_LOADS

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
_LEAST_GIB = 0.05  # less is not seen in what is printed


def remarks(shape: ShapeComparison) -> Iterator[str]:
    """What a reader of a shape's verdict has to know."""
    if shape.fairness.is_fair is None:
        yield f"Whether both went through as many experts was not checked ({shape.fairness.reason})."
    if shape.clocks and shape.clocks.is_one_slow:
        yield "One arm alone had iterations at a low clock. They do not decide."


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
    return " ".join([*sentences, *_worse(pair, shapes, arms, rules), *dict.fromkeys(notes), quality_sentence(pair)])


def _deciding(pair: Pair, shapes: Sequence[ShapeComparison], arms: Mapping[str, ComparedArm], rules: Rules) -> str:
    """By which figure arms are judged, and why by output per GPU."""
    if all(shape.speed.decided_by(rules) != "output_tok_s_per_gpu" for shape in shapes):
        return _DECIDING[rules.decide_on]
    counts = [f"{arm.name} has {arm.gpus}" for arm in reversed(sides(pair, arms))]
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
    weights = [arm.weights_gib for arm in sides(pair, arms)]
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
