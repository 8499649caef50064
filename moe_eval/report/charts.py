"""Which charts a comparison gives, and what is said under each."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from moe_eval.comparison.explained import explains
from moe_eval.records.comparison import ComparisonRecord, Pair
from moe_eval.records.ratios import Ratio
from moe_eval.records.shape_comparison import ShapeComparison
from moe_eval.records.verdicts import Verdict
from moe_eval.report import arm_tables, bars, drawing, pair_tables, points
from moe_eval.report.drawing import Chart
from moe_eval.report.points import Point, Series
from moe_eval.report.text import (
    METRICS,
    Table,
    category,
    comparable,
    confidence_of,
    finite,
    named,
    number,
    paragraph,
    plain,
    with_speed,
)
from moe_eval.stats import Estimate
from moe_eval.traces.collectives import SHOWN_CATEGORIES

_TIMES = ("e2e_ms", "tpot_ms", "ttft_ms")


def _with_caption(chart: Chart | None, caption: str) -> list[Chart]:
    return [replace(chart, caption=caption)] if chart else []


def speed(comparison: ComparisonRecord) -> list[Chart]:
    """The ratios over batch size, for every metric and pair of lengths; what cannot be compared is left out."""
    shapes = [shape for pair in with_speed(comparison) for shape in pair.shapes]
    lengths = list(dict.fromkeys(map(_lengths, shapes)))
    return [chart for metric in _TIMES for length in lengths for chart in _speed_charts(comparison, metric, length)]


def ratios_png(comparison: ComparisonRecord, file: Path) -> bool:
    """Write the speed-up of end-to-end time as a picture.

    Returns:
        Whether there is one: no pair may be timed.
    """
    charts = speed(comparison)
    if charts:
        drawing.png(charts[0], file)
    return bool(charts)


def _speed_charts(comparison: ComparisonRecord, metric: str, lengths: str) -> list[Chart]:
    index_of, series = _indices(comparison), dict[str, Series]()
    void, drawn = list[str](), list[Ratio]()
    for pair in with_speed(comparison):
        for shape in pair.shapes:
            ratio = pair_tables.ratio_of(shape, metric)
            point = _ratio_point(ratio) if _lengths(shape) == lengths and (shape.batch_size or 0) > 0 else None
            if point is None or ratio is None or shape.batch_size is None:
                continue
            if shape.verdict is Verdict.NOT_COMPARABLE:
                void.append(f"{named(pair.other)} at batch {shape.batch_size}")
                continue
            arm = series.setdefault(pair.other, Series(index_of.get(pair.other, 0), named(pair.other), {}))
            arm.points[shape.batch_size] = point
            drawn.append(ratio)
    title = f"Speed-up of {METRICS[metric]} over {named(comparison.reference)}, {lengths}"
    caption = "Above the line at 1x is faster, and above the dashed line by more than the least gain. Whiskers are "
    caption += f"{confidence_of(drawn)} intervals by load. A hollow marker has none."
    caption += f" Clock: {', '.join(sorted({named(ratio.source) for ratio in drawn}))}."
    caption += f" Left out, as it cannot be compared: {', '.join(void)}." if void else ""
    return _with_caption(points.ratios(title, list(series.values()), comparison.rules.min_gain), caption)


def _indices(comparison: ComparisonRecord) -> dict[str, int]:
    """Colour and marker of every arm, alike in all charts; the reference has the first."""
    return {arm.name: index for index, arm in enumerate(comparison.arms)}


def _lengths(shape: ShapeComparison) -> str:
    return f"{named(shape.input_len)} tokens in, {named(shape.output_len)} out"


def _ratio_point(ratio: Ratio | None) -> Point | None:
    """A ratio that can be drawn on a logarithmic axis."""
    point = _point(ratio)
    if point is None or point.value <= 0:
        return None
    return point if point.bounds[0] > 0 else Point(point.value, None, None)


def _point(figure: Ratio | Estimate | None) -> Point | None:
    value = None if figure is None else finite(figure.value)
    return None if figure is None or value is None else Point(value, finite(figure.low), finite(figure.high))


@dataclass
class PhaseParts:
    """Charts and tables of one phase of a shape."""

    name: str
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def steps(comparison: ComparisonRecord) -> dict[str, list[PhaseParts]]:
    """By shape and phase, the stacked bars of all arms, a waterfall for every pair, and their tables.

    What does not explain the measured ratio is drawn in grey.
    """
    by_phase: dict[tuple[str, str], PhaseParts] = {}
    times_of: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    unexplained: dict[tuple[str, str], list[str]] = {}
    for pair in comparable(comparison):
        for shape in pair.shapes:
            for phase in pair_tables.phases_of(shape):
                parts = by_phase.setdefault((shape.name, phase), PhaseParts(plain(phase)))
                parts.charts += _waterfall(pair, shape, phase)
                change = (shape.kernels or {}).get(phase)
                if change and explains(change) is False:
                    unexplained.setdefault((shape.name, phase), []).append(named(pair.other))
                parts.tables += pair_tables.kernels(pair, shape, phase)
                breakdown = (shape.breakdown or {}).get(phase) or {}
                for side, arm_name in enumerate((pair.reference, pair.other)):
                    arm_times = times_of.setdefault((shape.name, phase), {}).setdefault(arm_name, {})
                    arm_times |= {key: finite(sides[side]) or 0.0 for key, sides in breakdown.items()}
    for arm, shape_name, phase, times in arm_tables.traced(comparison):
        parts = by_phase.setdefault((shape_name, phase), PhaseParts(plain(phase)))
        parts.tables += pair_tables.of_one_arm(arm, shape_name, phase, times)
        arm_times = {key: finite(ms) or 0.0 for key, ms in times.items()}
        times_of.setdefault((shape_name, phase), {})[arm.name] = arm_times
    names = (name for sides in times_of.values() for times in sides.values() for name in times)
    order = list(dict.fromkeys([*SHOWN_CATEGORIES, *names]))
    by_shape: dict[str, list[PhaseParts]] = {}
    for key, parts in by_phase.items():
        shape_name, phase = key
        title = f"Kernel time per step by category, {named(shape_name)}, {plain(phase)}"
        sides = [(named(name), times) for name, times in times_of[key].items()]
        caption, grey = "Medians of a trace. Numbers in the bars are those of the key.", unexplained.get(key, [])
        if grey:
            caption += f" Grey: kernels that do not explain the measured ratio ({', '.join(grey)})."
        parts.charts = [*_with_caption(bars.stacked(title, sides, order, grey), caption), *parts.charts]
        by_shape.setdefault(named(shape_name), []).append(parts)
    return by_shape


def _waterfall(pair: Pair, shape: ShapeComparison, phase: str) -> list[Chart]:
    change = (shape.kernels or {}).get(phase)
    before, after = (finite(ms) for ms in (change.step_ms if change else None) or (None, None))
    if change is None or before is None or after is None:
        return []
    reference, arm = named(pair.reference), named(pair.other)
    changes = [
        (category(name), moved)
        for name, row in change.categories.items()
        if (moved := finite(row.change_ms)) is not None
    ]
    title = f"From a step of {reference} to one of {arm}, {named(shape.name)}, {plain(phase)}"
    ends = ((reference, before), (arm, after))
    extent = "from its begin to the next one's" if change.step_is == "wall" else "the span of its kernels"
    is_grey = explains(change) is False
    head = "Drawn in grey, as the kernels do not explain the measured ratio. " if is_grey else ""
    caption = f"{head}A step is {extent}, under the profiler. {paragraph(change.text)}".strip()
    changes += pair_tables.rest_of_change(change)
    return _with_caption(bars.waterfall(title, ends, changes, is_grey=is_grey), caption)


def quality(comparison: ComparisonRecord) -> list[Chart]:
    """ln(perplexity ratio) with intervals and the noise floor, and the mean divergence."""
    index_of, reference = _indices(comparison), named(comparison.reference)
    costs = [(pair.other, pair.quality) for pair in comparable(comparison) if pair.quality is not None]
    series = [
        Series(index_of.get(name, 0), named(name), {0: point})
        for name, cost in costs
        if (point := _point(cost.ln_ppl_ratio)) is not None
    ]
    floor = max((cost.largest_noise for _, cost in costs if cost.noise_floor), default=None)
    caption = "ln of the ratio of perplexities. Whiskers are 95 % intervals. A hollow marker has none."
    if floor is not None:
        caption += f" The band is the noise floor, {number(floor, 6)}: what another batch size may do to {reference}."
    sizes = [
        (index_of.get(name, 0), named(name), size)
        for name, cost in costs
        if cost.divergence is not None and (size := finite(cost.divergence.mean)) is not None
    ]
    kld = bars.lengths(f"Mean divergence (KLD) from {reference}", sizes, "nats", 5)
    return [
        *_with_caption(points.quality(f"Perplexity against {reference}", series, floor), caption),
        *_with_caption(kld, "By token. 0 is the same."),
    ]
