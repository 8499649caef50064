"""The tables of a pair of arms: verdicts, speed, conditions, quality and labels."""

from __future__ import annotations

from moe_eval.records.comparison import ComparisonRecord, Interval, Pair, Ratio, ShapeComparison
from moe_eval.report.table import Table, without_empty_columns
from moe_eval.report.text import (
    LONGEST_SENTENCE,
    METRICS,
    NONE,
    UNITS,
    comparable,
    digits_of,
    finite,
    named,
    names_of,
    number,
    paragraph,
    percent,
    plain,
    span,
)

_UNREAD = "not read"


def verdicts(pair: Pair) -> list[Table]:
    """The verdict of every shape."""
    rows = [
        (
            named(shape.name),
            named(shape.batch_size),
            named(shape.input_len),
            named(shape.output_len),
            shape.verdict.value,
            plain(shape.reason, LONGEST_SENTENCE),
        )
        for shape in pair.shapes
    ]
    heads = ("shape", "batch size", "tokens in", "tokens out", "verdict", "reason")
    return without_empty_columns(f"Verdict by shape: {names_of(pair)}", heads, rows)


def has_speed(pair: Pair) -> bool:
    """Whether any shape was timed with both arms."""
    sides = [figure for shape in pair.shapes for figure in shape.figures.values()]
    return any(median(figure.reference) is not None and median(figure.other) is not None for figure in sides)


def median(figure: Interval | None) -> float | None:
    """The median of a figure that may not be there."""
    return None if figure is None else finite(figure.median)


def ratio_of(shape: ShapeComparison, metric: str) -> Ratio | None:
    """The ratio of one time; None of energy, which has none."""
    return {"e2e_ms": shape.speed.e2e_ms, "ttft_ms": shape.speed.ttft_ms, "tpot_ms": shape.speed.tpot_ms}.get(metric)


def speed(pair: Pair) -> list[Table]:
    """Medians of both arms and their ratio, a row for every shape and metric; none where one arm alone was timed."""
    if not has_speed(pair):
        return []
    reference, arm = named(pair.reference), named(pair.other)
    rows = [row for shape in pair.shapes for metric in METRICS for row in _speed_row(shape, metric)]
    heads = (
        "shape",
        "metric",
        reference,
        f"{reference}: 95 % interval",
        arm,
        f"{arm}: 95 % interval",
        "speed-up",
        "speed-up: 95 % interval",
        "blocks",
        "clock",
    )
    return without_empty_columns(f"Speed: {names_of(pair)} (medians)", heads, rows)


def _speed_row(shape: ShapeComparison, metric: str) -> list[tuple[str, ...]]:
    sides, ratio = shape.figures.get(metric), ratio_of(shape, metric)
    figures = (None, None) if sides is None else (sides.reference, sides.other)
    if ratio is None and all(median(figure) is None for figure in figures):
        return []
    digits = digits_of(map(median, figures))
    cells = [cell for figure in figures for cell in (number(median(figure), digits), bounds_of(figure, digits))]
    return [(named(shape.name), f"{METRICS[metric]}, {UNITS[metric]}", *cells, *_ratio_cells(shape, ratio))]


def _ratio_cells(shape: ShapeComparison, ratio: Ratio | None) -> tuple[str, str, str, str]:
    if ratio is None:
        return "", "", "", ""
    if shape.fairness.is_fair is False:
        return "void: not fair", "", f"{ratio.blocks}", named(ratio.source)
    bounds = span(ratio.low, ratio.high, 3, unit="x")
    return number(ratio.value, 3, unit="x"), bounds, f"{ratio.blocks}", named(ratio.source)


def of_speed(pair: Pair) -> list[Table]:
    """Everything that a report's section on speed has of a pair."""
    return [*speed(pair), *notes(pair), *conditions(pair)]


def conditions(pair: Pair) -> list[Table]:
    """What has to hold for the ratios to mean anything: routing and clocks."""
    reference, arm = named(pair.reference), named(pair.other)
    rows = []
    for shape in pair.shapes:
        fairness, clocks = shape.fairness, shape.clocks
        cells = [NONE] * 4
        if clocks is not None:
            cells = [number(mhz, 0) for mhz in clocks.sm_mhz]
            cells += [_UNREAD if count is None else f"{count}" for count in clocks.slow_samples]
        fair = NONE if fairness.is_fair is None else named(fairness.is_fair)
        rows.append((named(shape.name), fair, plain(fairness.reason or "", LONGEST_SENTENCE), *cells))
    heads = (
        "shape",
        "routing is fair",
        "routing: reason",
        f"SM clock of {reference}, MHz",
        f"SM clock of {arm}, MHz",
        f"slow samples of {reference}",
        f"slow samples of {arm}",
    )
    return without_empty_columns(f"Fairness and clocks: {names_of(pair)}", heads, rows)


def notes(pair: Pair) -> list[Table]:
    """What the speed measurement of either arm remarked, a row for every remark."""
    rows = [
        (named(shape.name), named(arm), plain(note, LONGEST_SENTENCE))
        for shape in pair.shapes
        for arm, remarks in shape.notes.items()
        for note in remarks
    ]
    return without_empty_columns(f"Notes on the measurement: {names_of(pair)}", ("shape", "arm", "note"), rows)


def quality(comparison: ComparisonRecord) -> list[Table]:
    """Perplexity and divergence of every pair that scored the same windows."""
    rows = []
    for pair in comparable(comparison):
        cost = pair.quality
        if cost is None:
            continue
        ratio, divergence = cost.ln_ppl_ratio, cost.divergence
        remarks = [paragraph(text) for text in (cost.flag, cost.calibration, cost.no_interval) if text]
        rows.append(
            (
                names_of(pair),
                number(percent(cost.ppl_change), 2, unit=" %", signed=True),
                NONE if ratio is None else number(ratio.value, 5, signed=True),
                NONE if ratio is None else span(ratio.low, ratio.high, 5, signed=True),
                number(cost.noise_floor, 6),
                NONE if divergence is None else number(divergence.mean, 5),
                NONE if divergence is None else number(divergence.p99, 5),
                NONE if divergence is None else number(percent(divergence.same_top1), 2, unit=" %"),
                " ".join(remarks),
            )
        )
    heads = (
        "pair",
        "perplexity",
        "ln(ppl ratio)",
        "95 % interval",
        "noise floor of ln(ppl ratio)",
        "KLD mean, nats",
        "KLD p99, nats",
        "same top-1",
        "remark",
    )
    return without_empty_columns("Quality against the reference", heads, rows)


def labels(pair: Pair) -> list[Table]:
    """What the two arms do not share."""
    rows = [(named(label.label), named(label.reference), named(label.other)) for label in pair.labels]
    heads = ("label", named(pair.reference), named(pair.other))
    return without_empty_columns(f"Labels that differ: {names_of(pair)}", heads, rows)


def bounds_of(figure: Interval | None, digits: int) -> str:
    """The interval of one arm."""
    if figure is None or finite(figure.low) is None or finite(figure.high) is None:
        return NONE
    return span(figure.low, figure.high, digits)
