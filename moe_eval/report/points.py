"""Charts of figures with intervals: speed-up by batch size, and perplexity against the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from moe_eval.comparison.wording import ratio_digits
from moe_eval.report.drawing import (
    COLOURS,
    CYCLE,
    LETTERS_PER_INCH,
    MARKERS,
    WIDTH,
    Chart,
    canvas,
    fitted,
    row_canvas,
    tick_text,
)
from moe_eval.report.text import number, plain, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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

    def words(self, digits: int, unit: str, *, signed: bool = False) -> str:
        """The figure in words."""
        value = number(self.value, digits, unit=unit, signed=signed)
        bounds = span(self.low, self.high, digits, unit=unit, signed=signed)
        return f"{value} (no interval)" if bounds == "none" else f"{value} ({bounds})"


@dataclass(frozen=True)
class Series:
    """One arm. `index` chooses colour and marker, alike in all charts."""

    index: int
    name: str
    points: dict[int, Point]  # by batch size; for `quality` a single one by 0

    @property
    def colour(self) -> str:
        """Of markers and whiskers."""
        return CYCLE[self.index % len(CYCLE)]

    @property
    def marker(self) -> str:
        """Matplotlib's letter."""
        return MARKERS[self.index % len(MARKERS)]

    def draw(self, axes: Axes, point: Point, place: float, label: str, *, is_across: bool = False) -> None:
        """Draw a marker with its whiskers, hollow where it has none. `place` is on the other axis."""
        (low, high), value = point.bounds, point.value
        has_interval = point.low is not None and point.high is not None
        whiskers = [[max(value - low, 0)], [max(high - value, 0)]] if has_interval else None
        axes.errorbar(
            [value if is_across else place],
            [place if is_across else value],
            xerr=whiskers if is_across else None,
            yerr=None if is_across else whiskers,
            color=self.colour,
            marker=self.marker,
            capsize=4,
            linewidth=1.5,
            markerfacecolor=self.colour if has_interval else COLOURS["page"],
            label=label,
        )


def ratios(title: str, series: Sequence[Series], min_gain: float) -> Chart | None:
    """How many times faster each arm is than the reference over the batch size; both axes are logarithmic.

    Args:
        min_gain: the least gain that counts, which has a line of its own.
    """
    series = [arm for arm in series if arm.points]
    if not series:
        return None
    description = ". ".join(
        f"{plain(arm.name)} at batch {batch}: {point.words(ratio_digits(point.low, point.high, min_gain), 'x')}"
        for arm in series
        for batch, point in sorted(arm.points.items())
    )
    description = f"{description}. Above 1x is faster than the reference. The least gain is {100 * min_gain:.10g} %."
    return Chart(title, description, partial(_draw_ratios, series, min_gain))


def _draw_ratios(series: Sequence[Series], min_gain: float) -> Figure:
    """Arms of one batch size stand side by side."""
    from matplotlib.lines import Line2D

    names = [fitted(arm.name, WIDTH - 1) for arm in series]
    columns = max(1, min(len(names), int(WIDTH * LETTERS_PER_INCH) // (max(map(len, names)) + 6)))
    key = 0.1 + 0.2 * math.ceil(len(names) / columns)
    figure, axes = canvas(3.2 + key, (0.75, 0.55, 0.55, key))
    batches = sorted({batch for arm in series for batch in arm.points})
    _set_batches(axes, batches)
    _set_ratios(axes, [edge for arm in series for point in arm.points.values() for edge in point.bounds], min_gain)
    gap = min((math.log2(after / before) for before, after in pairwise(batches)), default=2.0)
    aside = min(0.022 * (math.log2(batches[-1] / batches[0]) or 2.0), 0.7 * gap / len(series))
    for index, arm in enumerate(series):
        for batch, point in sorted(arm.points.items()):
            arm.draw(axes, point, batch * 2 ** (aside * (index - (len(series) - 1) / 2)), f"{arm.index}-{batch}")
            if len(series) == 1:
                place = (batch, point.value)
                label = number(point.value, ratio_digits(point.low, point.high, min_gain), unit="x")
                axes.annotate(label, place, (9, 0), textcoords="offset points", va="center")
    handles = [Line2D([], [], color=arm.colour, marker=arm.marker, linestyle="none") for arm in series]
    legend = axes.legend(handles, names, ncols=columns, handletextpad=0.4, borderaxespad=0, loc="lower left")
    legend.set_bbox_to_anchor((0, 1.02), axes.transAxes)
    return figure


def _set_batches(axes: Axes, batches: Sequence[int]) -> None:
    """A logarithmic axis with a tick for every batch size, and a number where there is room for it."""
    low, high = math.log2(batches[0]), math.log2(batches[-1])
    margin = 0.08 * (high - low) or 1.0
    axes.set_xscale("log", base=2)
    axes.set_xlim(2 ** (low - margin), 2 ** (high + margin))
    labels, end = [], -math.inf
    for batch in batches:
        place = (math.log2(batch) - low) / (high - low + 2 * margin)
        fits = place - end >= 0.014 * len(f"{batch}") + 0.01
        labels.append(f"{batch}" if fits else "")
        end = place if fits else end
    axes.set_xticks(batches, labels)
    axes.minorticks_off()
    axes.set_xlabel("batch size (log scale)")


def _set_ratios(axes: Axes, edges: Sequence[float], min_gain: float) -> None:
    """A logarithmic axis that holds all edges, 1 and the least gain, with a line at either."""
    from matplotlib.ticker import AutoLocator, LogLocator

    low, high = min(*edges, 1.0), max(*edges, 1.0 + min_gain)
    margin = max((high / low) ** 0.08, 1.01)
    axes.set_yscale("log")
    axes.set_ylim(low / margin, high * margin)
    axes.yaxis.set_major_locator(AutoLocator() if high / low < 4 else LogLocator(base=2, numticks=8))
    axes.yaxis.set_major_formatter(
        lambda value, _: f"1/{1 / value:,.0f}x" if 0 < value < 0.01 else f"{tick_text(value)}x"
    )
    axes.minorticks_off()
    axes.grid(axis="y")
    axes.axhline(1, color=COLOURS["text"], linewidth=1.2, gid="same")
    if min_gain:
        axes.axhline(1 + min_gain, color=COLOURS["soft"], linewidth=0.8, linestyle="--", gid="gain")
    edge, grey = ("axes fraction", "data"), COLOURS["soft"]
    axes.annotate("same", (1, 1), (4, 0), edge, "offset points", va="center", fontsize=8, color=grey)


def quality(title: str, series: Sequence[Series], noise: float | None) -> Chart | None:
    """ln(perplexity ratio) of every arm with its interval about zero; `noise` is drawn as a band on both sides."""
    series = [arm for arm in series if arm.points]
    if not series:
        return None
    description = ". ".join(f"{plain(arm.name)}: {arm.points[0].words(5, '', signed=True)}" for arm in series)
    band = f" The noise floor is {number(noise, 6)} on both sides of zero." if noise else ""
    return Chart(title, f"{description}.{band}", partial(_draw_quality, series, noise or 0.0))


def _draw_quality(series: Sequence[Series], noise: float) -> Figure:
    names = [f"{fitted(arm.name, WIDTH - 3)}: {arm.points[0].words(5, '', signed=True)}" for arm in series]
    figure, axes = row_canvas(names, 0.5, bottom=0.6)
    edges = [edge for arm in series for edge in arm.points[0].bounds] + [0.0, noise, -noise]
    margin = 0.06 * (max(edges) - min(edges)) or 0.001
    axes.set_xlim(min(edges) - margin, max(edges) + margin)
    if noise:
        axes.axvspan(-noise, noise, color=COLOURS["band"], linewidth=0, gid="noise")
    axes.axvline(0, color=COLOURS["text"], linewidth=1.2, gid="zero")
    for row, arm in enumerate(series):
        arm.draw(axes, arm.points[0], row, f"{arm.index}", is_across=True)
    axes.xaxis.set_major_formatter(lambda value, _: tick_text(value, signed=True))
    axes.set_xlabel("ln(perplexity / reference's): to the right is worse")
    return figure
