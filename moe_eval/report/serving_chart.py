"""The chart of frontiers: tokens per second of a user against those of a GPU, with both arms of every pair."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from moe_eval.frozen import frozen
from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.serving_comparison import FrontierPoint
from moe_eval.records.verdicts import Verdict
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
from moe_eval.report.readable import shape_words, significant
from moe_eval.report.text import finite, named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase


@frozen
class _Curve:
    """One arm. `index` chooses colour and marker, alike in all charts."""

    index: int
    name: str
    points: Sequence[FrontierPoint]

    def ident(self, at: int) -> str:
        return f"frontier-{self.index}-{at}"


def frontiers(comparison: ComparisonRecord) -> Chart | None:
    """None where no pair was served at two points."""
    index_of = {arm.name: index for index, arm in enumerate(comparison.arms)}
    curves: dict[str, _Curve] = {}
    limit_ms: float | None = None
    for pair in comparison.pairs:
        if pair.serving is None or pair.verdict in (Verdict.NOT_COMPARABLE, Verdict.BROKEN):
            continue
        limit_ms = pair.serving.limits.tpot_ms
        for name, points in zip((pair.reference, pair.other), pair.serving.frontier, strict=True):
            drawn = [point for point in points if finite(point.tok_s_per_user) and finite(point.tok_s_per_gpu)]
            curves[name] = _Curve(index_of.get(name, 0), named(name), drawn)
    ordered = sorted(curves.values(), key=lambda curve: curve.index)
    if not any(len(curve.points) > 1 for curve in ordered):
        return None
    tips = {
        curve.ident(at): (
            f"{curve.name}, {shape_words(point.name)}: {significant(point.tok_s_per_user)} tok/s per user, "
            f"{significant(point.tok_s_per_gpu)} per GPU"
        )
        for curve in ordered
        for at, point in enumerate(curve.points)
    }
    keys = [fitted(curve.name, WIDTH - 1) for curve in ordered]
    height = 3.0 + key_height(keys)
    caption = "Numbers are users. A line joins the points that no other one of the arm is better than in both."
    draw = partial(_draw, ordered, keys, height, limit_ms)
    return Chart("Tokens per user and per GPU under load", f"{'. '.join(tips.values())}.", height, draw, tips, caption)


def _draw(
    curves: Sequence[_Curve], keys: Sequence[str], height: float, limit_ms: float | None, figure: FigureBase
) -> None:
    from matplotlib.lines import Line2D

    axes = canvas(figure, height, (0.75, 0.3, 0.5, key_height(keys)))
    points = [point for curve in curves for point in curve.points]
    for axis, values in (
        ("x", [point.tok_s_per_user for point in points]),
        ("y", [point.tok_s_per_gpu for point in points]),
    ):
        _set_axis(axes, axis, min(values), max(values))
    axes.set_xlabel("tokens per second and user (right is faster for a user)")
    axes.set_ylabel("tokens per second and GPU")
    axes.grid()
    if limit_ms is not None:
        _draw_limit(axes, limit_ms)
    for curve in curves:
        colour, marker = CYCLE[curve.index % len(CYCLE)], MARKERS[curve.index % len(MARKERS)]
        best = sorted((point for point in curve.points if point.is_best), key=lambda point: point.tok_s_per_user)
        axes.plot(
            [point.tok_s_per_user for point in best],
            [point.tok_s_per_gpu for point in best],
            color=colour,
            linewidth=1.2,
        )
        for at, point in enumerate(curve.points):
            place = (point.tok_s_per_user, point.tok_s_per_gpu)
            (drawn,) = axes.plot(*place, color=colour, marker=marker, linestyle="none")
            drawn.set_gid(curve.ident(at))
            drawn.set_markerfacecolor(colour if point.is_best else COLOURS["page"])
            users = point.name.partition("_")[0].removeprefix("c")
            axes.annotate(users, place, (4, 4), textcoords="offset points", fontsize=7, color=colour)
    handles = [
        Line2D([], [], color=CYCLE[curve.index % len(CYCLE)], marker=MARKERS[curve.index % len(MARKERS)], linewidth=1.2)
        for curve in curves
    ]
    add_key(axes, handles, keys)


def _draw_limit(axes: Axes, limit_ms: float) -> None:
    """A line where a token takes as long as it may. Users to its right are in time."""
    low, high = axes.get_xlim()
    if low < 1000 / limit_ms < high:
        line = axes.axvline(1000 / limit_ms, color=COLOURS["soft"], linestyle="--", linewidth=1)
        line.set_gid("frontier-limit")
        place, along = (1000 / limit_ms, 0), axes.get_xaxis_transform()
        text = f"{limit_ms:g} ms a token"
        axes.annotate(text, place, (3, 3), along, "offset points", fontsize=7, color=COLOURS["soft"])


def _set_axis(axes: Axes, axis: str, low: float, high: float) -> None:
    """A logarithmic axis with room at both ends."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullLocator

    margin = max((high / low) ** 0.08, 1.05)
    getattr(axes, f"set_{axis}scale")("log")
    getattr(axes, f"set_{axis}lim")(low / margin, high * margin**1.5)
    ticks = axes.xaxis if axis == "x" else axes.yaxis
    ticks.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12) if high / low > 4 else AutoLocator())
    ticks.set_minor_locator(NullLocator())
    ticks.set_major_formatter(lambda value, _: tick_text(value) if 1e-3 < value < 1e6 else f"{value:.0e}")
