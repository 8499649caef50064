"""Charts of a comparison as SVG; each is "" where there is nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from moe_eval.report.svg import (
    COLOURS,
    WIDTH,
    drawing,
    element,
    fitted,
    key,
    label,
    line,
    log_ticks,
    marker,
    patterns,
    ratio_text,
    segment,
    tick_text,
    ticks,
    width_of,
)
from moe_eval.report.text import category, digits_of, number, plain, span

_LEFT, _RIGHT = 10.0, WIDTH - 10.0
_SMALL = 0.002  # of a step: changes below it have no row of their own in a waterfall


@dataclass(frozen=True)
class Point:
    """A figure with its interval, None where there is none."""

    value: float
    low: float | None
    high: float | None

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval, or the value twice."""
        return (self.value, self.value) if self.low is None or self.high is None else (self.low, self.high)

    def told(self, digits: int, unit: str, *, signed: bool = False) -> str:
        """The figure in words."""
        value = number(self.value, digits, unit=unit, signed=signed)
        bounds = span(self.low, self.high, digits, unit=unit, signed=signed)
        return f"{value} (no interval)" if bounds == "none" else f"{value} ({bounds})"


@dataclass(frozen=True)
class Series:
    """One arm: `which` chooses colour and marker."""

    which: int
    name: str
    points: dict[int, Point]  # by batch size; for `quality`, one by 0


def ratios(ident: str, title: str, series: Sequence[Series]) -> str:
    """How many times faster each arm is than the reference over the batch size; both axes are logarithmic."""
    series = [each for each in series if each.points]
    if not series:
        return ""
    batches = sorted({batch for each in series for batch in each.points})
    bounds = [edge for each in series for point in each.points.values() for edge in point.bounds]
    low, high = min(*bounds, 1.0), max(*bounds, 1.0)
    margin = max((high / low) ** 0.08, 1.01)
    low, high = low / margin, high * margin
    names, top = key([(each.which, each.name) for each in series], 0)
    bottom, left, right = top + 230, 60.0, WIDTH - 46.0

    def x_of(batch: int) -> float:
        if len(batches) == 1:
            return (left + right) / 2
        share = math.log2(batch / batches[0]) / math.log2(batches[-1] / batches[0])
        return left + 24 + share * (right - left - 48)

    def y_of(ratio: float) -> float:
        return top + 8 + (bottom - top - 8) * math.log(high / ratio) / math.log(high / low)

    parts = [names]
    for value in log_ticks(low, high):
        y = y_of(value)
        parts += [line(left, y, right, y, "grid"), label(ratio_text(value), left - 6, y + 4, "tick", "end")]
    shown = -math.inf
    for batch in batches:
        x = x_of(batch)
        parts.append(line(x, bottom, x, bottom + 4, "axis"))
        if x - shown >= width_of(f"{batch}") + 6:
            parts.append(label(f"{batch}", x, bottom + 18, "tick", "middle"))
            shown = x
    parts += [
        line(left, bottom, right, bottom, "axis"),
        label("batch size (log scale)", (left + right) / 2, bottom + 36, "tick", "middle"),
        line(left, y_of(1), right, y_of(1), "one"),
        label("same", right + 4, y_of(1) + 4, "tick"),
    ]
    gap = min((x_of(two) - x_of(one) for one, two in pairwise(batches)), default=right - left)
    aside = min(11.0, 0.7 * gap / len(series))  # arms of one batch size stand side by side
    for at, each in enumerate(series):
        for batch, point in each.points.items():
            x = x_of(batch) + aside * (at - (len(series) - 1) / 2)
            whisker = []
            if point.low is not None and point.high is not None:
                ends = y_of(point.low), y_of(point.high)
                kind = f"whisker s{each.which % COLOURS}"
                whisker = [line(x, *(ends[0], x, ends[1]), kind), *(line(x - 4, y, x + 4, y, kind) for y in ends)]
            mark = marker(each.which, x, y_of(point.value), hollow=not whisker)
            text = [label(f"{point.value:.2f}x", x + 9, y_of(point.value) + 4, "halo")] if len(series) == 1 else []
            parts.append(element("g", *whisker, mark, *text, data_arm=plain(each.name), data_batch=batch))
    told = "; ".join(
        f"{plain(each.name)} at batch {batch}: {point.told(3, 'x')}"
        for each in series
        for batch, point in sorted(each.points.items())
    )
    return drawing(ident, title, f"{told}. Above 1x is faster than the reference.", bottom + 44, *parts)


def stacked(ident: str, title: str, bars: Sequence[tuple[str, Mapping[str, float]]], order: Sequence[str]) -> str:
    """ms by category, one bar an arm, from the left in the order of `order`, which gives number, colour and pattern."""
    bars = [(name, parts) for name, parts in bars if sum(parts.values()) > 0]
    if not bars:
        return ""
    known = [(at, each) for at, each in enumerate(order) if any(parts.get(each, 0) > 0 for _, parts in bars)]
    longest = max(sum(parts.values()) for _, parts in bars)
    digits, scale = digits_of([longest]), (_RIGHT - _LEFT) / longest
    drawn, y = [patterns(ident)], 0.0
    for name, parts in bars:
        total = number(sum(parts.values()), digits, unit=" ms")
        drawn += [label(fitted(name, 380), _LEFT, y + 16), label(total, _RIGHT, y + 16, "", "end")]
        x = _LEFT
        for at, each in known:
            wide = max(parts.get(each, 0.0), 0.0) * scale
            if wide:
                drawn.append(segment(ident, at, (x, y + 22, wide, 26), (plain(name), plain(each))))
            x += wide
        y += 58
    for value in ticks(0, longest):
        x = _LEFT + value * scale
        drawn.append(line(x, y - 6, x, y, "axis"))
        text = "0 ms" if value == 0 else tick_text(value)
        drawn.append(label(text, x, y + 14, "tick", "start" if value == 0 else "middle" if x < _RIGHT - 14 else "end"))
    drawn.append(line(_LEFT, y - 6, _RIGHT, y - 6, "axis"))
    y += 26
    half = (len(known) + 1) // 2
    for place, (at, each) in enumerate(known):
        x, row = (_LEFT, place) if place < half else (WIDTH / 2 + 5, place - half)
        values = " / ".join(number(parts.get(each, 0.0), digits) for _, parts in bars) if len(bars) < 4 else ""
        named = fitted(category(each), 225 - width_of(values))
        drawn += [
            segment(ident, at, (x, y + 22 * row, 20, 16)),
            label(f"{named}: {values}" if values else named, x + 26, y + 22 * row + 12),
        ]
    told = "; ".join(
        f"{plain(name)}: "
        + ", ".join(f"{category(each)} {number(parts.get(each, 0.0), digits)} ms" for _, each in known)
        for name, parts in bars
    )
    return drawing(ident, title, f"{told}.", y + 22 * half + 4, *drawn)


def waterfall(ident: str, title: str, ends: tuple[tuple[str, float], tuple[str, float]],
              changes: Sequence[tuple[str, float]]) -> str:  # fmt: skip
    """From the reference's ms to the other's, a row for every change.

    Args:
        ends: name and ms of both.
        changes: name and ms, in order; they add up to the difference of the ends. Small ones are drawn as one.
    """
    (one, before), (two, after) = ends
    changes = _merged(changes, _SMALL * max(abs(before), abs(after)))
    levels = [before]
    for _, change in changes:
        levels.append(levels[-1] + change)
    low, high = min(0.0, *levels, after), max(*levels, after)
    if high <= low:
        return ""
    left, right, digits = 140.0, WIDTH - 90.0, digits_of([before, after])

    def x_of(ms: float) -> float:
        return left + (right - left) * (ms - low) / (high - low)

    rows = [(one, 0.0, before, "end", number(before, digits))]
    rows += [
        (name, begin, begin + change, "cost" if change > 0 else "gain", number(change, digits, signed=True))
        for (name, change), begin in zip(changes, levels, strict=False)
    ]
    rows.append((two, 0.0, after, "end", number(after, digits)))
    parts = [patterns(ident)]
    for at, (name, begin, end, kind, value) in enumerate(rows):
        y, x, wide = 26.0 * at, x_of(min(begin, end)), abs(x_of(end) - x_of(begin))
        box = element("rect", x=x, y=y + 4, width=wide, height=18, class_=kind)
        if kind == "cost":
            box += element("rect", x=x, y=y + 4, width=wide, height=18, fill=f"url(#{ident}-hatch)")
        parts += [
            label(fitted(name, left - 8), left - 8, y + 17, "", "end"),
            element("g", box, data_row=plain(name), data_kind=kind),
            label(value, right + 82, y + 17, "", "end"),
        ]
        if at + 1 < len(rows):
            parts.append(line(x_of(end), y + 4, x_of(end), y + 48, "link"))
    y = 26.0 * len(rows) + 4
    parts += [line(x_of(0), 0, x_of(0), y, "axis"), label("ms per step", right + 82, y + 14, "tick", "end")]
    parts += [
        element("rect", x=left, y=y + 4, width=14, height=12, class_="gain"),
        label("less time", left + 20, y + 14, "tick"),
        element("rect", x=left + 100, y=y + 4, width=14, height=12, class_="cost"),
        element("rect", x=left + 100, y=y + 4, width=14, height=12, fill=f"url(#{ident}-hatch)"),
        label("more time", left + 120, y + 14, "tick"),
    ]
    told = "; ".join(f"{plain(name)} {value} ms" for name, _, _, _, value in rows)
    return drawing(ident, title, f"{told}.", y + 24, *parts)


def _merged(changes: Sequence[tuple[str, float]], least: float) -> list[tuple[str, float]]:
    """Changes below `least` as one, at the end, where there are several."""
    small = [each for each in changes if 0 < abs(each[1]) < least]
    if len(small) < 2:
        return [each for each in changes if each[1]]
    large = [each for each in changes if abs(each[1]) >= least]
    return [*large, (f"{len(small)} smaller changes", sum(change for _, change in small))]


def quality(ident: str, title: str, series: Sequence[Series], noise: float | None) -> str:
    """ln(perplexity ratio) of every arm with its interval about zero; `noise` is drawn as a band on both sides."""
    series = [each for each in series if each.points]
    if not series:
        return ""
    bounds = [edge for each in series for edge in each.points[0].bounds] + [0.0, noise or 0.0, -(noise or 0.0)]
    low, high = min(bounds), max(bounds)
    margin = 0.06 * (high - low) or 0.001
    low, high = low - margin, high + margin
    bottom = 46.0 * len(series) + 6

    def x_of(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (value - low) / (high - low)

    parts = []
    if noise:
        wide = x_of(noise) - x_of(-noise)
        parts.append(element("rect", x=x_of(-noise), y=0, width=wide, height=bottom, class_="noise"))
    parts.append(line(x_of(0), 0, x_of(0), bottom, "one"))
    for at, each in enumerate(series):
        point, y, kind = each.points[0], 46.0 * at + 34, f"whisker s{each.which % COLOURS}"
        whisker = []
        if point.low is not None and point.high is not None:
            edges = x_of(point.low), x_of(point.high)
            whisker = [line(edges[0], y, edges[1], y, kind), *(line(x, y - 5, x, y + 5, kind) for x in edges)]
        told = point.told(5, "", signed=True)
        name = fitted(each.name, WIDTH - 40 - width_of(told))
        mark = marker(each.which, x_of(point.value), y, hollow=not whisker)
        parts += [label(f"{name}: {told}", _LEFT, y - 18, "halo"), element("g", *whisker, mark, data_arm=plain(name))]
    parts.append(line(_LEFT, bottom, _RIGHT, bottom, "axis"))
    for value in ticks(low, high):
        x = x_of(value)
        at_edge = "start" if x < _LEFT + 24 else "end" if x > _RIGHT - 24 else "middle"
        parts += [
            line(x, bottom, x, bottom + 4, "axis"),
            label(tick_text(value, signed=True), x, bottom + 18, "tick", at_edge),
        ]
    parts.append(label("ln(perplexity / reference's): to the right is worse", WIDTH / 2, bottom + 36, "tick", "middle"))
    said = "; ".join(f"{plain(each.name)}: {each.points[0].told(5, '', signed=True)}" for each in series)
    band = f" The noise floor is {number(noise, 6)} on both sides of zero." if noise else ""
    return drawing(ident, title, f"{said}.{band}", bottom + 44, *parts)


def lengths(ident: str, title: str, rows: Sequence[tuple[int, str, float]], unit: str, digits: int) -> str:
    """A bar for every arm: which colour, its name and its size."""
    longest = max((size for _, _, size in rows), default=0.0)
    if longest <= 0:
        return ""
    scale, parts = (_RIGHT - _LEFT) / longest, []
    for at, (which, name, size) in enumerate(rows):
        y, value = 40.0 * at, number(size, digits, unit=f" {unit}")
        text = f"{fitted(name, WIDTH - 40 - width_of(value))}: {value}"
        box = element("rect", x=_LEFT, y=y + 20, width=max(size, 0) * scale, height=14, class_=f"f{which % COLOURS}")
        parts += [label(text, _LEFT, y + 14), element("g", box, data_arm=plain(name))]
    told = "; ".join(f"{plain(name)}: {number(size, digits)} {unit}" for _, name, size in rows)
    return drawing(ident, title, f"{told}.", 40.0 * len(rows) + 4, *parts)
