"""Which charts a comparison gives, and what is said under each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moe_eval.records.comparison import ComparisonRecord, Pair, PhaseChange, Ratio, ShapeComparison
from moe_eval.records.quality import Estimate
from moe_eval.report import arm_tables, bars, drawing, points, step_tables
from moe_eval.report.drawing import Chart
from moe_eval.report.pair_tables import ratio_of
from moe_eval.report.points import Point, Series
from moe_eval.report.text import METRICS, Table, category, comparable, finite, named, number, paragraph, plain
from moe_eval.traces.taxonomy import CATEGORIES

_TIMES = ("e2e_ms", "tpot_ms", "ttft_ms")


@dataclass(frozen=True)
class Figure:
    """A chart and what is said under it."""

    chart: Chart
    caption: str


@dataclass
class PhaseParts:
    """Charts and tables of one phase of a shape."""

    name: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def speed(comparison: ComparisonRecord) -> list[Figure]:
    """The ratios over batch size, for every metric and pair of lengths; shapes that are not fair are left out."""
    shapes = [shape for pair in comparable(comparison) for shape in pair.shapes]
    lengths = list(dict.fromkeys(map(_lengths, shapes)))
    figures = (_speed_figure(comparison, metric, length) for metric in _TIMES for length in lengths)
    return [figure for figure in figures if figure is not None]


def ratios_png(comparison: ComparisonRecord, file: Path) -> bool:
    """Write the speed-up of end-to-end time as a picture.

    Returns:
        Whether there is one: no pair may be timed.
    """
    figures = speed(comparison)
    if figures:
        drawing.png(figures[0].chart, file)
    return bool(figures)


def _speed_figure(comparison: ComparisonRecord, metric: str, lengths: str) -> Figure | None:
    index_of, series = _indices(comparison), dict[str, Series]()
    void, sources = list[str](), set[str]()
    for pair in comparable(comparison):
        for shape in pair.shapes:
            ratio = ratio_of(shape, metric)
            point = _ratio_point(ratio) if _lengths(shape) == lengths and (shape.batch_size or 0) > 0 else None
            if point is None or ratio is None or shape.batch_size is None:
                continue
            if shape.fairness.is_fair is False:
                void.append(f"{named(pair.other)} at batch {shape.batch_size}")
                continue
            arm = series.setdefault(pair.other, Series(index_of.get(pair.other, 0), named(pair.other), {}))
            arm.points[shape.batch_size] = point
            sources.add(named(ratio.source))
    title = f"Speed-up of {METRICS[metric]} over {named(comparison.reference)}, {lengths}"
    chart = points.ratios(title, list(series.values()))
    caption = "Above the line at 1x is faster. Whiskers are 95 % intervals. A hollow marker has none."
    caption += f" Clock: {', '.join(sorted(sources))}."
    caption += f" Left out, as the routing was not fair: {', '.join(void)}." if void else ""
    return Figure(chart, caption) if chart else None


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


class _Steps:
    """Gathers charts and tables of steps by shape and phase."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[str, PhaseParts]] = {}
        self._bars: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
        self._order = dict.fromkeys(map(str, CATEGORIES))
        self._waterfalls: list[tuple[PhaseParts, Figure]] = []

    def _phase(self, shape: str, phase: str) -> PhaseParts:
        return self._parts.setdefault(shape, {}).setdefault(phase, PhaseParts(plain(phase)))

    def add_pair(self, pair: Pair, shape: ShapeComparison, phase: str) -> None:
        """A phase that both arms were traced in."""
        parts = self._phase(shape.name, phase)
        sides = self._bars.setdefault((shape.name, phase), {})
        for key, values in ((shape.breakdown or {}).get(phase) or {}).items():
            self._order[key] = None
            for arm, value in zip((pair.reference, pair.other), values, strict=True):
                sides.setdefault(arm, {})[key] = finite(value) or 0.0
        change = (shape.kernels or {}).get(phase)
        names = (named(pair.reference), named(pair.other))
        figure = None if change is None else _waterfall(change, names, _where(shape.name, phase))
        self._waterfalls += [(parts, figure)] if figure else []
        parts.tables.extend(step_tables.kernels(pair, shape, phase))

    def add_arm(self, arm: str, shape: str, phase: str, times: Mapping[str, float], tables: Iterable[Table]) -> None:
        """A phase of an arm that is compared with nothing."""
        self._order.update(dict.fromkeys(times))
        self._bars.setdefault((shape, phase), {})[arm] = {key: finite(ms) or 0.0 for key, ms in times.items()}
        self._phase(shape, phase).tables.extend(tables)

    def parts(self) -> dict[str, list[PhaseParts]]:
        """By shape: bars first, then waterfalls."""
        for (shape, phase), sides in self._bars.items():
            title = f"Kernel time per step by category, {_where(shape, phase)}"
            chart = bars.stacked(title, [(named(arm), times) for arm, times in sides.items()], list(self._order))
            caption = "Medians of a trace. Numbers in the bars are those of the key."
            self._phase(shape, phase).figures += [Figure(chart, caption)] if chart else []
        for parts, figure in self._waterfalls:
            parts.figures.append(figure)
        return {
            named(shape): [parts for parts in phases.values() if parts.figures or parts.tables]
            for shape, phases in self._parts.items()
        }


def steps(comparison: ComparisonRecord) -> dict[str, list[PhaseParts]]:
    """Stacked bars of all arms and a waterfall for every pair, by shape and phase."""
    gathered = _Steps()
    for pair in comparable(comparison):
        for shape in pair.shapes:
            for phase in step_tables.phases_of(shape):
                gathered.add_pair(pair, shape, phase)
    for arm, shape_name, phase, times in arm_tables.traced(comparison):
        tables = step_tables.of_one_arm(arm, shape_name, phase, times)
        gathered.add_arm(arm.name, shape_name, phase, times, tables)
    return gathered.parts()


def _where(shape: str, phase: str) -> str:
    return f"{named(shape)}, {plain(phase)}"


def _waterfall(change: PhaseChange, names: tuple[str, str], where: str) -> Figure | None:
    before, after = (finite(ms) for ms in change.step_ms or (None, None))
    if before is None or after is None:
        return None
    changes = [
        (category(name), moved)
        for name, row in change.categories.items()
        if (moved := finite(row.change_ms)) is not None
    ]
    title = f"From a step of {names[0]} to one of {names[1]}, {where}"
    ends = ((names[0], before), (names[1], after))
    chart = bars.waterfall(title, ends, [*changes, *step_tables.rest_of_change(change)])
    extent = "from its begin to the next one's" if change.step_is == "wall" else "the span of its kernels"
    caption = f"A step is {extent}, under the profiler. {paragraph(change.text)}"
    return Figure(chart, caption.strip()) if chart else None


def quality(comparison: ComparisonRecord) -> list[Figure]:
    """ln(perplexity ratio) with intervals and the noise floor, and the mean divergence."""
    index_of, reference = _indices(comparison), named(comparison.reference)
    costs = [(pair.other, pair.quality) for pair in comparable(comparison) if pair.quality is not None]
    series = [
        Series(index_of.get(name, 0), named(name), {0: point})
        for name, cost in costs
        if (point := _point(cost.ln_ppl_ratio)) is not None
    ]
    floor = max((size for _, cost in costs if (size := finite(cost.noise_floor)) is not None), default=None)
    caption = "ln of the ratio of perplexities. Whiskers are 95 % intervals. A hollow marker has none."
    if floor is not None:
        caption += f" The band is the noise floor, {number(floor, 6)}: what another batch size does to {reference}."
    sizes = [
        (index_of.get(name, 0), named(name), size)
        for name, cost in costs
        if cost.divergence is not None and (size := finite(cost.divergence.mean)) is not None
    ]
    figures = (
        (points.quality(f"Perplexity against {reference}", series, floor), caption),
        (bars.lengths(f"Mean divergence (KLD) from {reference}", sizes, "nats", 5), "By token. 0 is the same."),
    )
    return [Figure(chart, text) for chart, text in figures if chart is not None]
