"""Charts of figures with intervals: speed-up by batch size, and perplexity against the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from moe_eval.report.drawing import (
    COLOURS,
    CYCLE,
    MARKERS,
    WIDTH,
    Chart,
    canvas,
    columns_of_key,
    fitted,
    tick_text,
    ticks,
)
from moe_eval.report.text import number, plain, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


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

    @property
    def has_interval(self) -> bool:
        """Whether both bounds are known."""
        return self.low is not None and self.high is not None

    def words(self, digits: int, unit: str, *, signed: bool = False) -> str:
        """The figure in words."""
        value = number(self.value, digits, unit=unit, signed=signed)
        bounds = span(self.low, self.high, digits, unit=unit, signed=signed)
        return f"{value} (no interval)" if bounds == "none" else f"{value} ({bounds})"


@dataclass(frozen=True)
class Series:
    """One arm. `index` chooses colour and marker."""

    index: int
    name: str
    points: dict[int, Point]  # by batch size; for `quality` a single one by 0

    @property
    def colour(self) -> str:
        """Of the arm, alike in all charts."""
        return CYCLE[self.index % len(CYCLE)]


def ratios(title: str, series: Sequence[Series]) -> Chart | None:
    """How many times faster each arm is than the reference over the batch size; both axes are logarithmic."""
    series = [arm for arm in series if arm.points]
    if not series:
        return None
    description = ". ".join(
        f"{plain(arm.name)} at batch {batch}: {point.words(3, 'x')}"
        for arm in series
        for batch, point in sorted(arm.points.items())
    )
    return Chart(title, f"{description}. Above 1x is faster than the reference.", partial(_draw_ratios, series))


def _draw_ratios(series: Sequence[Series]) -> Figure:
    names = [fitted(arm.name, WIDTH - 1) for arm in series]
    columns = columns_of_key(names)
    key = 0.1 + 0.2 * math.ceil(len(names) / columns)
    figure, axes = canvas(3.2 + key, (0.75, 0.55, 0.55, key))
    _set_batches(axes, sorted({batch for arm in series for batch in arm.points}))
    _set_ratios(axes, [edge for arm in series for point in arm.points.values() for edge in point.bounds])
    drawn = [_draw_arm(axes, arm, shift) for arm, shift in zip(series, _shifts(series), strict=True)]
    if len(series) == 1:
        for batch, point in series[0].points.items():
            axes.annotate(f"{point.value:.2f}x", (batch, point.value), (9, 0), textcoords="offset points", va="center")
    axes.legend(
        drawn, names, loc="lower left", bbox_to_anchor=(0, 1.02), ncols=columns, borderaxespad=0, handletextpad=0.4
    )
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
    axes.set_xticks([], minor=True)
    axes.set_xlabel("batch size (log scale)")


def _set_ratios(axes: Axes, edges: Sequence[float]) -> None:
    """A logarithmic axis that holds all edges and 1, with the line at 1."""
    low, high = min(*edges, 1.0), max(*edges, 1.0)
    margin = max((high / low) ** 0.08, 1.01)
    low, high = low / margin, high * margin
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    values = ratio_ticks(low, high)
    axes.set_yticks(values, [ratio_text(value) for value in values])
    axes.set_yticks([], minor=True)
    axes.grid(axis="y")
    axes.axhline(1, color=COLOURS["text"], linewidth=1.2, gid="same")
    axes.annotate(
        "same",
        (1, 1),
        (4, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=COLOURS["soft"],
    )


def _shifts(series: Sequence[Series]) -> list[float]:
    """How far every arm stands aside, in powers of two, so that arms of one batch size stand side by side."""
    batches = sorted({batch for arm in series for batch in arm.points})
    gap = min((math.log2(after / before) for before, after in pairwise(batches)), default=2.0)
    extent = math.log2(batches[-1] / batches[0]) or 2.0
    aside = min(0.022 * extent, 0.7 * gap / len(series))
    return [aside * (index - (len(series) - 1) / 2) for index in range(len(series))]


def _draw_arm(axes: Axes, arm: Series, shift: float) -> Line2D:
    """Markers and whiskers of an arm.

    Returns:
        What stands for it in the key.
    """
    for batch, point in sorted(arm.points.items()):
        x = batch * 2**shift
        low, high = point.bounds
        axes.errorbar(
            [x],
            [point.value],
            yerr=[[max(point.value - low, 0)], [max(high - point.value, 0)]] if point.has_interval else None,
            color=arm.colour,
            marker=MARKERS[arm.index % len(MARKERS)],
            capsize=4,
            linewidth=1.5,
            markerfacecolor=arm.colour if point.has_interval else COLOURS["page"],
            label=f"{arm.index}-{batch}",
        )
    return axes.plot([], [], color=arm.colour, marker=MARKERS[arm.index % len(MARKERS)], linestyle="none")[0]


def ratio_ticks(low: float, high: float) -> list[float]:
    """Round ratios from low to high, 1 among them if it is inside."""
    if high / low < 4:
        return ticks(low, high)
    powers = range(math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9) + 1)
    step = max(1, math.ceil(len(powers) / 8))
    return [2.0**power for power in powers if power % step == 0]


def ratio_text(value: float) -> str:
    """A ratio of ratio_ticks; small ones are powers of two."""
    return f"1/{1 / value:,.0f}x" if value < 0.01 else f"{tick_text(value)}x"


def quality(title: str, series: Sequence[Series], noise: float | None) -> Chart | None:
    """ln(perplexity ratio) of every arm with its interval about zero; `noise` is drawn as a band on both sides."""
    series = [arm for arm in series if arm.points]
    if not series:
        return None
    description = ". ".join(f"{plain(arm.name)}: {arm.points[0].words(5, '', signed=True)}" for arm in series)
    band = f" The noise floor is {number(noise, 6)} on both sides of zero." if noise else ""
    return Chart(title, f"{description}.{band}", partial(_draw_quality, series, noise))


def _draw_quality(series: Sequence[Series], noise: float | None) -> Figure:
    figure, axes = canvas(0.8 + 0.5 * len(series), (0.15, 0.15, 0.6, 0.05))
    edges = [edge for arm in series for edge in arm.points[0].bounds] + [0.0, noise or 0.0, -(noise or 0.0)]
    margin = 0.06 * (max(edges) - min(edges)) or 0.001
    low, high = min(edges) - margin, max(edges) + margin
    axes.set_xlim(low, high)
    axes.set_ylim(-len(series) + 0.4, 0.65)
    if noise:
        axes.axvspan(-noise, noise, color=COLOURS["band"], linewidth=0, gid="noise")
    axes.axvline(0, color=COLOURS["text"], linewidth=1.2, gid="zero")
    for row, arm in enumerate(series):
        point = arm.points[0]
        below, above = point.bounds
        phrase = point.words(5, "", signed=True)
        axes.errorbar(
            [point.value],
            [-row],
            color=arm.colour,
            marker=MARKERS[arm.index % len(MARKERS)],
            capsize=4,
            xerr=[[max(point.value - below, 0)], [max(above - point.value, 0)]] if point.has_interval else None,
            linewidth=1.5,
            markerfacecolor=arm.colour if point.has_interval else COLOURS["page"],
            label=f"{arm.index}",
        )
        name = f"{fitted(arm.name, WIDTH - 0.5 - len(phrase) / 13)}: {phrase}"
        ground = {"facecolor": COLOURS["page"], "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
        axes.text(low, -row + 0.3, name, va="bottom", bbox=ground)
    values = ticks(low, high)
    axes.set_xticks(values, [tick_text(value, signed=True) for value in values])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("ln(perplexity / reference's): to the right is worse")
    return figure
