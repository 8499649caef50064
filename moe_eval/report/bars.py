"""The chart of a step: the time of every category with each arm, and the difference from the reference."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from moe_eval.frozen import frozen
from moe_eval.report import readable
from moe_eval.report.drawing import COLOURS, CYCLE, WIDTH, Chart, add_key, canvas, fitted, key_height, tick_text
from moe_eval.report.text import number, plain

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import FigureBase

_HATCHES = ("", "////", "\\\\\\\\", "xxxx", "....")
_SMALL = 0.02  # of the longest step: categories below it share a row
_BAR, _GAP = 0.19, 0.12  # inches
_NAMES, _VALUES = 1.2, 1.1  # inches at the left and at the right


@frozen
class StepTimes:
    """The time of a step of one arm. `index` chooses colour and pattern, alike in all charts.

    Attributes:
        ms: by category in words.
        is_grey: drawn without its colour.
    """

    index: int
    name: str
    ms: Mapping[str, float]
    is_grey: bool = False


@frozen
class _Row:
    """A category: its time with every arm, and that in words."""

    name: str
    ms: Sequence[float]

    def text(self, at: int) -> str:
        """The time of an arm, and its difference from the reference's."""
        text = readable.significant(self.ms[at], unit=" ms")
        if at == 0:
            return text
        digits = max(readable.decimals(float(f"{ms:.1e}")) for ms in (self.ms[at], self.ms[0]))
        return f"{text} ({number(self.ms[at] - self.ms[0], digits, signed=True)})"


def steps(title: str, arms: Sequence[StepTimes], caption: str = "") -> Chart | None:
    """Bars of all arms by category, the first arm being the reference."""
    arms = [arm for arm in arms if sum(arm.ms.values()) > 0]
    if not arms:
        return None
    rows = _rows([arm.ms for arm in arms])
    tips = {
        f"bar-{place}-{at}": f"{row.name}, {plain(arm.name)}: {row.text(at)}"
        for place, row in enumerate(rows)
        for at, arm in enumerate(arms)
    }
    height = key_height(_keys(arms)) + 0.5 + len(rows) * _pitch(arms)
    return Chart(title, f"{'. '.join(tips.values())}.", height, partial(_draw, arms, rows, height), tips, caption)


def _keys(arms: Sequence[StepTimes]) -> list[str]:
    return [fitted(arm.name, WIDTH - 1) for arm in arms]


def _pitch(arms: Sequence[StepTimes]) -> float:
    """Inches of a row."""
    return len(arms) * _BAR + _GAP


def _rows(arms: Sequence[Mapping[str, float]]) -> list[_Row]:
    """The longest category first. Small ones share the last row."""
    names = dict.fromkeys(name for ms in arms for name in ms)
    rows = [_Row(name, [max(ms.get(name, 0.0), 0.0) for ms in arms]) for name in names]
    rows = sorted((row for row in rows if any(row.ms)), key=lambda row: -max(row.ms))
    smallest = _SMALL * max(sum(ms.values()) for ms in arms)
    small = [row.ms for row in rows if max(row.ms) < smallest]
    if len(small) < 2:
        return rows
    sums = [sum(times) for times in zip(*small, strict=True)]
    return [*rows[: -len(small)], _Row(f"{len(small)} smaller ones", sums)]


def _draw(arms: Sequence[StepTimes], rows: Sequence[_Row], height: float, figure: FigureBase) -> None:
    """Every bar has its time at the right end of the chart."""
    pitch, keys = _pitch(arms), _keys(arms)
    axes = canvas(figure, height, (_NAMES, _VALUES, 0.45, key_height(keys)))
    axes.set_ylim(len(rows) * pitch, 0)
    axes.set_xlim(0, max(max(row.ms) for row in rows))
    handles: list[Artist] = []
    for at, arm in enumerate(arms):
        colour = COLOURS["c5"] if arm.is_grey else CYCLE[arm.index % len(CYCLE)]
        hatch = _HATCHES[arm.index % len(_HATCHES)]
        places = [row * pitch + _GAP / 2 + (at + 0.5) * _BAR for row in range(len(rows))]
        times = [row.ms[at] for row in rows]
        boxes = axes.barh(places, times, 0.8 * _BAR, color=colour, hatch=hatch, edgecolor=COLOURS["page"])
        handles.append(boxes.patches[0])
        for place, (box, row) in enumerate(zip(boxes, rows, strict=True)):
            box.set_gid(f"bar-{place}-{at}")
            beside = ((1, places[place]), (5, 0), ("axes fraction", "data"), "offset points")
            axes.annotate(row.text(at), *beside, va="center", fontsize=8)
    names = [textwrap.fill(fitted(row.name, 2 * _NAMES), 16) for row in rows]
    axes.set_yticks([(row + 0.5) * pitch for row in range(len(rows))], names, color=COLOURS["text"])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: tick_text(value))
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("ms per step")
    add_key(axes, handles, keys)
