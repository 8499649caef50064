"""The tables of a pair of arms: verdicts, speed, conditions, quality, labels and kernels of a step."""

from __future__ import annotations

from collections.abc import Mapping

from moe_eval.comparison.ratio_wording import ratio_digits
from moe_eval.comparison.verdict import of_ratio
from moe_eval.records.comparison import ComparedArm, ComparisonRecord, Pair, QualityComparison
from moe_eval.records.ratios import Ratio, Sides
from moe_eval.records.shape_comparison import CategoryChange, PhaseChange, ShapeComparison
from moe_eval.records.verdicts import Rules, Verdict
from moe_eval.report.readable import category, shape_words
from moe_eval.report.text import (
    LONGEST_SENTENCE,
    METRICS,
    NONE,
    UNITS,
    Row,
    Table,
    apart,
    comparable,
    confidence_of,
    digits_of,
    figure_cells,
    finite,
    interval_head,
    median,
    named,
    names_of,
    number,
    paragraph,
    percent,
    plain,
    span,
    without_empty_columns,
)


def verdicts(pair: Pair, rules: Rules) -> list[Table]:
    """The verdict of every shape with the ratio that decides. A broken arm has none."""
    if pair.verdict is Verdict.BROKEN:
        return []
    ratios = [shape.speed.deciding(rules) for shape in pair.shapes]
    interval = f"{confidence_of(ratios)} interval"
    rows = [
        [
            ("shape", shape_words(shape.name)),
            ("verdict", shape.verdict.value),
            *zip(("speed-up", interval, "loads"), ratio_cells(shape, ratio, rules), strict=True),
            ("reason", plain(shape.reason, LONGEST_SENTENCE)),
        ]
        for shape, ratio in zip(pair.shapes, ratios, strict=True)
    ]
    return without_empty_columns(f"Verdict by shape: {names_of(pair)}", rows)


def ratio_cells(shape: ShapeComparison, ratio: Ratio | None, rules: Rules) -> tuple[str, str, str]:
    """A ratio of a shape, its interval and over how many loads it is. It is void where nothing may be compared."""
    if ratio is None:
        return NONE, NONE, NONE
    if shape.verdict is Verdict.NOT_COMPARABLE:
        return "void", NONE, NONE
    digits = ratio_digits(finite(ratio.low), finite(ratio.high), rules.min_gain)
    return (
        number(ratio.value, digits, unit="x"),
        span(ratio.low, ratio.high, digits, unit="x"),
        f"{ratio.loads}",
    )


def ruling(shape: ShapeComparison, metric: str, rules: Rules) -> str:
    """The verdict on one figure of a shape: the shape's own on what decides, else by its interval alone."""
    ratio = ratio_of(shape, metric)
    if ratio is None:
        return NONE
    if metric == shape.speed.decided_by(rules) or shape.verdict is Verdict.NOT_COMPARABLE:
        return shape.verdict.value
    verdict = of_ratio(ratio, rules)
    # energy is no time
    return "takes more" if (metric, verdict) == ("j_per_tok", Verdict.SLOWER) else verdict.value


def has_speed(pair: Pair) -> bool:
    """Whether any shape was timed with both arms."""
    sides = [figure for shape in pair.shapes for figure in shape.figures.values()]
    return any(median(figure.reference) is not None and median(figure.other) is not None for figure in sides)


def ratio_of(shape: ShapeComparison, metric: str) -> Ratio | None:
    """The ratio of one figure of both arms."""
    ratio: Ratio | None = getattr(shape.speed, metric)
    return ratio


def of_speed(pair: Pair, rules: Rules) -> list[Table]:
    """Everything that a report's section on speed has of a pair; no ratios where one arm alone was timed."""
    rows = _speed_rows(pair, rules) if has_speed(pair) else []
    notes = [
        [("shape", shape_words(shape.name)), ("arm", named(arm)), ("note", plain(note, LONGEST_SENTENCE))]
        for shape in pair.shapes
        for arm, remarks in shape.notes.items()
        for note in remarks
    ]
    return [
        *without_empty_columns(f"Speed: {names_of(pair)} (medians)", rows),
        *without_empty_columns(f"Notes on the measurement: {names_of(pair)}", notes),
        *without_empty_columns(
            f"Fairness and clocks: {names_of(pair)}", [_conditions(pair, shape) for shape in pair.shapes]
        ),
    ]


# between numbers of GPUs there is one more, which decides by default
_PER_GPU = "output_tok_s_per_gpu"
_METRICS = {**METRICS, _PER_GPU: "output per second and GPU"}
_UNITS = {**UNITS, _PER_GPU: "tokens"}


def _speed_rows(pair: Pair, rules: Rules) -> list[Row]:
    shapes = pair.shapes
    sides = [figures for shape in shapes for figures in shape.figures.values()]
    names = named(pair.reference), named(pair.other)
    captions = [
        interval_head(figures.reference for figures in sides),
        interval_head(figures.other for figures in sides),
    ]
    confidence = confidence_of(ratio_of(shape, metric) for shape in shapes for metric in _METRICS)
    rows: list[Row] = []
    for shape in shapes:
        for metric, phrase in _METRICS.items():
            figures, ratio = shape.figures.get(metric) or Sides(None, None), ratio_of(shape, metric)
            if ratio is None and median(figures.reference) is None and median(figures.other) is None:
                continue
            row = [("shape", shape_words(shape.name)), ("metric", f"{phrase}, {_UNITS[metric]}")]
            for name, head, figure in zip(names, captions, (figures.reference, figures.other), strict=True):
                row += zip((name, f"{name}: {head}"), figure_cells(figure), strict=True)
            heads = ("ratio", f"{confidence} interval of the ratio", "loads")
            row.append(("verdict", ruling(shape, metric, rules)))
            row += zip(heads, ratio_cells(shape, ratio, rules), strict=True)
            rows.append([*row, ("clock", named(ratio.source if ratio else None))])
    return rows


def _conditions(pair: Pair, shape: ShapeComparison) -> Row:
    """What has to hold for the ratios to mean anything: routing and clocks."""
    names, fairness, clocks = (named(pair.reference), named(pair.other)), shape.fairness, shape.clocks
    speeds = [NONE] * 2 if clocks is None else [number(mhz, 0) for mhz in clocks.sm_mhz]
    slow = [NONE] * 2
    if clocks is not None:
        slow = ["not read" if count is None else f"{count}" for count in clocks.slow_samples]
    return [
        ("shape", shape_words(shape.name)),
        ("routing is fair", named(fairness.is_fair)),
        ("routing: reason", plain(fairness.reason or "", LONGEST_SENTENCE)),
        *((f"SM clock of {name}, MHz", mhz) for name, mhz in zip(names, speeds, strict=True)),
        *((f"slow samples of {name}", count) for name, count in zip(names, slow, strict=True)),
    ]


def quality(comparison: ComparisonRecord) -> list[Table]:
    """Perplexity and divergence of every pair that scored the same windows. Those of random weights say nothing."""
    rows = [
        [
            ("pair", names_of(pair)),
            ("perplexity", number(percent(cost.ppl_change), 2, unit=" %", signed=True)),
            *quality_cells(cost),
            ("noise floor of ln(ppl ratio)", number(cost.largest_noise if cost.noise_floor else None, 6)),
            ("remark", " ".join(map(paragraph, filter(None, (cost.flag, cost.calibration, cost.no_interval))))),
        ]
        for pair in comparable(comparison)
        if (cost := pair.quality) is not None and not cost.random_weights
    ]
    return without_empty_columns("Quality against the reference (KLD in nats)", rows)


def quality_cells(cost: QualityComparison | None) -> Row:
    """An arm's scores against those of the reference."""
    ratio, divergence = (None, None) if cost is None else (cost.ln_ppl_ratio, cost.divergence)
    return [
        ("ln(ppl ratio)", number(ratio.value if ratio else None, 5, signed=True)),
        ("95 % interval", span(ratio.low, ratio.high, 5, signed=True) if ratio else NONE),
        ("KLD mean", number(divergence.mean if divergence else None, 5)),
        ("KLD median", number(divergence.median if divergence else None, 5)),
        ("KLD p99", number(divergence.p99 if divergence else None, 5)),
        ("same top-1", number(percent(divergence.same_top1) if divergence else None, 2, unit=" %")),
    ]


def labels(pair: Pair) -> list[Table]:
    """What the two arms do not share."""
    sides = named(pair.reference), named(pair.other)
    rows = [
        [("label", named(label.label)), (sides[0], named(label.reference)), (sides[1], named(label.other))]
        for label in pair.labels
    ]
    return without_empty_columns(f"Labels that differ: {names_of(pair)}", rows)


def phases_of(shape: ShapeComparison) -> list[str]:
    """The phases that were traced."""
    return list(dict.fromkeys([*(shape.breakdown or {}), *(shape.kernels or {})]))


def kernels(pair: Pair, shape: ShapeComparison, phase: str) -> list[Table]:
    """Behind the bars and the waterfall: ms per step by category, and the functions that only one arm runs."""
    reference, arm = named(pair.reference), named(pair.other)
    change, breakdown = (shape.kernels or {}).get(phase), (shape.breakdown or {}).get(phase) or {}
    where = f"{names_of(pair)}, {shape_words(shape.name)}, {plain(phase)}"
    heads = ["category", f"{reference}, ms per step", f"{arm}, ms per step", "change, ms"]
    heads += [f"launches of {reference}", f"launches of {arm}"]
    rows = [list(zip(heads, cells, strict=True)) for cells in _category_cells(change, breakdown)]
    sides = () if change is None else ((arm, change.new), (reference, change.vanished))
    owned = [(name, kernel) for name, functions in sides for kernel in functions]
    singles = [
        [
            ("kernel", text),
            ("runs in", f"{name} only"),
            ("category", category(kernel.category)),
            ("ms per step", number(kernel.ms, 3)),
            ("launches", number(kernel.launches, 0)),
        ]
        for (name, kernel), text in zip(owned, apart([kernel.name for _, kernel in owned]), strict=True)
    ]
    return [
        *without_empty_columns(f"Time per step: {where} (trace, medians)", rows),
        *without_empty_columns(f"Kernels of one arm only: {where}", singles),
    ]


def _category_cells(change: PhaseChange | None, breakdown: Mapping[str, tuple[float, float]]) -> list[tuple[str, ...]]:
    changes: Mapping[str, CategoryChange] = {} if change is None else change.categories
    sides = {name: (row.before_ms, row.after_ms) for name, row in changes.items()} or dict(breakdown)
    digits = digits_of(value for times in sides.values() for value in times)

    def moved(before: float, after: float) -> tuple[str, str, str]:
        return number(before, digits), number(after, digits), number(after - before, digits, signed=True)

    cells: list[tuple[str, ...]] = []
    for name, times in sides.items():
        row = changes.get(name)
        launches = (row.before_launches, row.after_launches) if row else (None, None)
        cells.append((category(name), *moved(*times), *(number(count, 0) for count in launches)))
    if change is None:
        return cells
    cells += [(phrase, "", "", number(value, digits, signed=True), "", "") for phrase, value in rest_of_change(change)]
    if change.step_ms is not None:
        cells.append(("step" if change.step_is == "wall" else "span of kernels", *moved(*change.step_ms), "", ""))
    return cells


def rest_of_change(change: PhaseChange) -> list[tuple[str, float]]:
    """What the categories' changes leave of a step's change, in ms; empty where the trace has no times."""
    parts = [
        ("overlap of kernels", finite(change.overlap_change_ms), -1),
        ("waiting", finite(change.waiting_change_ms), 1),
        ("residual", finite(change.residual_ms), 1),
    ]
    return [(phrase, sign * value) for phrase, value, sign in parts if value is not None]


def of_one_arm(arm: ComparedArm, shape: str, phase: str, times: Mapping[str, float]) -> list[Table]:
    """ms per step of one arm by category."""
    digits = digits_of(times.values())
    rows = [[("category", category(name)), ("ms per step", number(ms, digits))] for name, ms in times.items()]
    return without_empty_columns(
        f"Time per step: {named(arm.name)}, {shape_words(shape)}, {plain(phase)} (trace, medians)", rows
    )
