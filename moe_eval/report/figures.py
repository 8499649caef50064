"""Which charts a comparison gives, and what is said under each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from moe_eval.report import charts, tables, tables_arms
from moe_eval.report.charts import Point, Series
from moe_eval.report.text import (
    LONGEST_SENTENCE,
    METRICS,
    category,
    comparable,
    finite,
    named,
    number,
    pair_of,
    plain,
)
from moe_eval.traces.taxonomy import CATEGORIES

_SPEED = ("e2e_ms", "tpot_ms", "ttft_ms")


@dataclass(frozen=True)
class Figure:
    """A chart with its title and what is said under it, as text."""

    title: str
    svg: str
    caption: str


@dataclass
class PhaseParts:
    """Charts and tables of one phase of a shape."""

    name: str
    figures: list[Figure] = field(default_factory=list)
    tables: list[tables.Table] = field(default_factory=list)


def _which(comparison: Mapping[str, Any]) -> dict[Any, int]:
    """Colour and marker of every arm, alike in all charts; the reference has the first."""
    return {arm.get("name"): at for at, arm in enumerate(comparison.get("arms") or ())}


def _point(found: Any) -> Point | None:
    value = finite(found.get("value")) if isinstance(found, Mapping) else None
    return None if value is None else Point(value, finite(found.get("low")), finite(found.get("high")))


def _lengths(shape: Mapping[str, Any]) -> str:
    return f"{named(shape.get('input_len'))} tokens in, {named(shape.get('output_len'))} out"


def _where(shape: Any, phase: Any) -> str:
    return f"{named(shape)}, {plain(phase)}"


def _ratio(shape: Mapping[str, Any], metric: str) -> Point | None:
    """A ratio that can be drawn on a logarithmic axis."""
    point = _point((shape.get("speed") or {}).get(metric))
    if point is None or point.value <= 0 or (finite(shape.get("batch_size")) or 0) < 1:
        return None
    return point if point.bounds[0] > 0 else Point(point.value, None, None)


def speed(comparison: Mapping[str, Any], ids: Iterator[str]) -> list[Figure]:
    """The ratios over batch size, for every metric and pair of lengths; shapes that are not fair are left out."""
    which, found = _which(comparison), []
    shapes = [(pair, shape) for pair in comparable(comparison) for shape in pair.get("shapes") or ()]
    reference = named(comparison.get("reference"))
    for metric in _SPEED:
        for lengths in dict.fromkeys(_lengths(shape) for _, shape in shapes):
            series: dict[Any, Series] = {}
            void, sources = [], set()
            for pair, shape in shapes:
                point = _ratio(shape, metric) if _lengths(shape) == lengths else None
                if point is None:
                    continue
                name = pair.get("other")
                if shape.get("fair") is False:
                    void.append(f"{named(name)} at batch {shape['batch_size']}")
                    continue
                each = series.setdefault(name, Series(which.get(name, 0), named(name), {}))
                each.points[int(shape["batch_size"])] = point
                sources.add(named(shape["speed"][metric].get("source")))
            title = f"Speed-up of {METRICS[metric]} over {reference}, {lengths}"
            drawing = charts.ratios(next(ids), title, list(series.values()))
            caption = "Above the line at 1x is faster. Whiskers are 95 % intervals; a hollow marker has none."
            caption += f" Clock: {', '.join(sorted(sources))}."
            caption += f" Left out, as the routing was not fair: {', '.join(void)}." if void else ""
            found += [Figure(title, drawing, caption)] if drawing else []
    return found


def steps(comparison: Mapping[str, Any], ids: Iterator[str]) -> dict[str, list[PhaseParts]]:
    """Stacked bars of all arms and a waterfall for every pair, by shape and phase."""
    found: dict[Any, dict[str, PhaseParts]] = {}
    bars: dict[tuple[Any, str], dict[Any, dict[str, float]]] = {}
    order: dict[str, None] = dict.fromkeys(CATEGORIES)
    later: list[tuple[PhaseParts, Figure]] = []
    for pair in comparable(comparison):
        one, two = pair.get("reference"), pair.get("other")
        for shape in pair.get("shapes") or ():
            name = shape.get("name")
            broken, differences = shape.get("breakdown") or {}, shape.get("kernels") or {}
            for phase in dict.fromkeys([*broken, *differences]):
                parts = found.setdefault(name, {}).setdefault(phase, PhaseParts(plain(phase)))
                sides = bars.setdefault((name, phase), {})
                for key, values in (broken.get(phase) or {}).items():
                    order[key] = None
                    for arm, value in zip((one, two), pair_of(values), strict=True):
                        sides.setdefault(arm, {})[key] = value or 0.0
                figure = _waterfall(
                    next(ids), differences.get(phase) or {}, (named(one), named(two)), _where(name, phase)
                )
                later += [(parts, figure)] if figure else []
                parts.tables.extend(tables.kernels(pair, shape, phase))
    for arm, name, phase, values in tables_arms.traced(comparison):
        parts = found.setdefault(name, {}).setdefault(phase, PhaseParts(plain(phase)))
        order.update(dict.fromkeys(values))
        bars.setdefault((name, phase), {})[arm.get("name")] = {key: finite(ms) or 0.0 for key, ms in values.items()}
        parts.tables.extend(tables_arms.steps(arm, name, phase, values))
    for (name, phase), sides in bars.items():
        title = f"Kernel time per step by category, {_where(name, phase)}"
        named_sides = [(named(arm), values) for arm, values in sides.items()]
        drawing = charts.stacked(next(ids), title, named_sides, list(order))
        caption = "Medians of a trace. Numbers in the bars are those of the key."
        found[name][phase].figures += [Figure(title, drawing, caption)] if drawing else []
    for parts, figure in later:
        parts.figures.append(figure)
    return {
        named(name): [each for each in phases.values() if each.figures or each.tables] for name, phases in found.items()
    }


def _waterfall(ident: str, found: Mapping[str, Any], names: tuple[str, str], where: str) -> Figure | None:
    before, after = pair_of(found.get("step_ms"))
    if before is None or after is None:
        return None
    changes = [
        (category(name), change)
        for name, each in (found.get("categories") or {}).items()
        if (change := finite(each.get("change_ms"))) is not None
    ]
    title = f"From a step of {names[0]} to one of {names[1]}, {where}"
    drawing = charts.waterfall(
        ident, title, ((names[0], before), (names[1], after)), [*changes, *tables.waiting(found)]
    )
    step = "from its begin to the next one's" if found.get("step_is") == "wall" else "the span of its kernels"
    caption = f"A step is {step}, under the profiler. {plain(found.get('text') or '', LONGEST_SENTENCE)}"
    return Figure(title, drawing, caption.strip()) if drawing else None


def quality(comparison: Mapping[str, Any], ids: Iterator[str]) -> list[Figure]:
    """ln(perplexity ratio) with intervals and the noise floor, and the mean divergence."""
    which = _which(comparison)
    pairs = [(pair.get("other"), pair["quality"]) for pair in comparable(comparison) if pair.get("quality")]
    reference = named(comparison.get("reference"))
    series = [
        Series(which.get(name, 0), named(name), {0: point})
        for name, found in pairs
        if (point := _point(found.get("ln_ppl_ratio"))) is not None
    ]
    floor = max((size for _, found in pairs if (size := finite(found.get("noise_floor"))) is not None), default=None)
    title = f"Perplexity against {reference}"
    drawn = charts.quality(next(ids), title, series, floor)
    caption = "ln of the ratio of perplexities. Whiskers are 95 % intervals; a hollow marker has none."
    if floor is not None:
        caption += f" The band is the noise floor, {number(floor, 6)}: what another batch size does to {reference}."
    found = [Figure(title, drawn, caption)] if drawn else []
    sizes = [
        (which.get(name, 0), named(name), size)
        for name, found_of in pairs
        if (size := finite(found_of.get("kld_mean"))) is not None
    ]
    title = f"Mean divergence (KLD) from {reference}"
    drawn = charts.lengths(next(ids), title, sizes, "nats", 5)
    return [*found, Figure(title, drawn, "By token; 0 is the same.")] if drawn else found
