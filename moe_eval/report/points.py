"""Charts of figures with intervals: speed by batch size, and perplexity against the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from moe_eval.frozen import frozen
from moe_eval.report.drawing import (
    COLOURS,
    CYCLE,
    MARKERS,
    WIDTH,
    Chart,
    add_key,
    canvas,
    fitted,
    key_height,
    tick_text,
)
from moe_eval.report.text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase


@frozen
class Point:
    """A figure with its interval, None where there is none.

    Attributes:
        text: the figure in words.
        label: what is drawn beside it.
    """

    value: float
    low: float | None
    high: float | None
    text: str = ""
    label: str = ""

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval, or the value twice."""
        return (self.value, self.value) if self.low is None or self.high is None else (self.low, self.high)


@frozen
class Series:
    """One arm. `index` chooses colour and marker, alike in all charts.

    Attributes:
        points: by batch size. Of quality there is one, by 0.
    """

    index: int
    name: str
    points: Mapping[int, Point]

    @property
    def colour(self) -> str:
        """Of markers, lines and whiskers."""
        return CYCLE[self.index % len(CYCLE)]

    @property
    def marker(self) -> str:
        """Matplotlib's letter."""
        return MARKERS[self.index % len(MARKERS)]

    def draw(self, axes: Axes, point: Point, place: float, ident: str, *, is_across: bool = False) -> None:
        """Draw a marker with its whiskers, hollow where it has none. `place` is on the other axis."""
        (low, high), value = point.bounds, point.value
        has_interval = point.low is not None and point.high is not None
        whiskers = [[max(value - low, 0)], [max(high - value, 0)]] if has_interval else None
        drawn = axes.errorbar(
            [value if is_across else place],
            [place if is_across else value],
            xerr=whiskers if is_across else None,
            yerr=None if is_across else whiskers,
            color=self.colour,
            marker=self.marker,
            capsize=4,
            linewidth=1.5,
            markerfacecolor=self.colour if has_interval else COLOURS["page"],
            label=ident,
        )
        if (marker := drawn.lines[0]) is not None:
            marker.set_gid(ident)


def _chart(
    title: str, series: Sequence[Series], height: float, draw: Callable[[FigureBase], None], caption: str
) -> Chart:
    """A chart with a tip for every point."""
    tips = {
        f"point-{arm.index}-{batch}": f"{plain(arm.name)}{f' at batch {batch}' if batch else ''}: {point.text}"
        for arm in series
        for batch, point in sorted(arm.points.items())
    }
    return Chart(title, f"{'. '.join(tips.values())}.", height, draw, tips, caption)


def speed(title: str, series: Sequence[Series], caption: str = "") -> Chart | None:
    """Output tokens a second by batch size, points of an arm joined. None with one batch size: nothing to join."""
    series = [arm for arm in series if arm.points]
    if len({batch for arm in series for batch in arm.points}) < 2:
        return None
    keys = [fitted(arm.name, WIDTH - 1) for arm in series]
    height = 3.0 + key_height(keys)
    return _chart(title, series, height, partial(_draw_speed, series, keys, height), caption)


def _draw_speed(series: Sequence[Series], keys: Sequence[str], height: float, figure: FigureBase) -> None:
    from matplotlib.lines import Line2D

    axes = canvas(figure, height, (0.75, 0.3, 0.5, key_height(keys)))
    _set_batches(axes, sorted({batch for arm in series for batch in arm.points}))
    _set_rates(axes, [edge for arm in series for point in arm.points.values() for edge in point.bounds])
    for arm in series:
        batches = sorted(arm.points)
        axes.plot(batches, [arm.points[batch].value for batch in batches], color=arm.colour, linewidth=1.2)
        for batch in batches:
            point = arm.points[batch]
            arm.draw(axes, point, batch, f"point-{arm.index}-{batch}")
            axes.annotate(
                point.label, (batch, point.bounds[1]), (0, 6), textcoords="offset points", ha="center", fontsize=8
            )
    handles = [Line2D([], [], color=arm.colour, marker=arm.marker, linewidth=1.2) for arm in series]
    add_key(axes, handles, keys)


def _set_batches(axes: Axes, batches: Sequence[int]) -> None:
    """A tick for every batch size, with a number where there is room. Powers of two stand at equal distances."""
    is_log = all(batch & (batch - 1) == 0 for batch in batches)
    places = [math.log2(batch) if is_log else float(batch) for batch in batches]
    margin = 0.08 * (places[-1] - places[0])
    begin, end = places[0] - margin, places[-1] + margin
    if is_log:
        axes.set_xscale("log", base=2)
        axes.set_xlim(2**begin, 2**end)
    else:
        axes.set_xlim(begin, end)
    labels, edge = [], -math.inf
    for batch, place in zip(batches, places, strict=True):
        share = (place - begin) / (end - begin)
        fits = share - edge >= 0.02 * len(f"{batch}") + 0.015
        labels.append(f"{batch}" if fits else "")
        edge = share if fits else edge
    axes.set_xticks(batches, labels)
    axes.minorticks_off()
    axes.set_xlabel("batch size")


def _set_rates(axes: Axes, edges: Sequence[float]) -> None:
    """A logarithmic axis that holds all edges, with room for labels above."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullLocator

    low, high = min(edges), max(edges)
    margin = max((high / low) ** 0.06, 1.02)
    axes.set_yscale("log")
    axes.set_ylim(low / margin, high * margin**2.5)
    decades = LogLocator(base=10, subs=(1.0, 2.0, 5.0) if high / low < 1000 else (1.0,), numticks=12)
    axes.yaxis.set_major_locator(decades if high / low > 4 else AutoLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: tick_text(value) if 1e-3 < value < 1e6 else f"{value:.0e}")
    axes.grid(axis="y")
    axes.set_ylabel("tokens per second and GPU")


def quality(title: str, series: Sequence[Series], noise: float | None, caption: str = "") -> Chart | None:
    """The change of perplexity in percent with its interval about zero.

    Args:
        noise: in percent, drawn as a band on both sides of zero.
    """
    series = [arm for arm in series if arm.points]
    if not series:
        return None
    names = [f"{fitted(arm.name, WIDTH - 2.6)}: {arm.points[0].text}" for arm in series]
    height = 0.5 * len(names) + 0.6
    return _chart(title, series, height, partial(_draw_quality, series, names, noise or 0.0, height), caption)


def _draw_quality(
    series: Sequence[Series], names: Sequence[str], noise: float, height: float, figure: FigureBase
) -> None:
    axes = canvas(figure, height, (0.15, 0.15, 0.5, 0.1))
    axes.set_ylim(len(names) - 0.6, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    edges = [edge for arm in series for edge in arm.points[0].bounds] + [0.0, noise, -noise]
    margin = 0.06 * (max(edges) - min(edges)) or 0.1
    axes.set_xlim(min(edges) - margin, max(edges) + margin)
    if noise:
        axes.axvspan(-noise, noise, color=COLOURS["band"], linewidth=0, gid="noise")
    axes.axvline(0, color=COLOURS["text"], linewidth=1.2, gid="zero")
    ground = {"facecolor": COLOURS["page"], "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
    for row, (arm, name) in enumerate(zip(series, names, strict=True)):
        axes.text(0, row - 0.28, name, va="bottom", transform=axes.get_yaxis_transform(), bbox=ground)
        arm.draw(axes, arm.points[0], row, f"point-{arm.index}-0", is_across=True)
    axes.xaxis.set_major_formatter(lambda value, _: tick_text(value, signed=True))
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel("change of perplexity, % (right is worse)")
