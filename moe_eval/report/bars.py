"""Charts of lengths: kernel time by category, from one step to another, and divergence by arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, TypedDict

from moe_eval.report.drawing import COLOURS, CYCLE, WIDTH, Chart, canvas, fitted, tick_text, ticks
from moe_eval.report.text import category, digits_of, number, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Bar = tuple[str, Mapping[str, float]]  # an arm's name and its ms by category
_HATCHES = ("", "////", "\\\\\\\\")
_SMALL = 0.002  # of a step: changes below it have no row of their own in a waterfall
_GAIN, _COST, _STEP = COLOURS["c2"], COLOURS["c1"], COLOURS["c5"]


def stacked(title: str, bars: Sequence[Bar], order: Sequence[str]) -> Chart | None:
    """Stack ms by category, one bar an arm, in the order of `order`, which gives number, colour and pattern."""
    bars = [(name, parts) for name, parts in bars if sum(parts.values()) > 0]
    if not bars:
        return None
    indices = [index for index, key in enumerate(order) if any(parts.get(key, 0) > 0 for _, parts in bars)]
    digits = digits_of([max(sum(parts.values()) for _, parts in bars)])
    description = ". ".join(
        f"{plain(name)}: "
        + ", ".join(f"{category(order[index])} {number(parts.get(order[index], 0.0), digits)} ms" for index in indices)
        for name, parts in bars
    )
    return Chart(title, f"{description}.", partial(_draw_stacked, bars, order, indices, digits))


def _draw_stacked(bars: Sequence[Bar], order: Sequence[str], indices: Sequence[int], digits: int) -> Figure:
    key_rows = (len(indices) + 1) // 2
    figure, axes = canvas(0.6 + 0.55 * len(bars) + 0.19 * key_rows, (0.15, 0.15, 0.4 + 0.19 * key_rows, 0.02))
    longest = max(sum(parts.values()) for _, parts in bars)
    axes.set_xlim(0, longest)
    axes.set_ylim(-len(bars) + 0.5, 0.75)
    for row, (name, parts) in enumerate(bars):
        axes.text(0, -row + 0.3, fitted(name, WIDTH - 1.5), va="bottom")
        axes.text(longest, -row + 0.3, number(sum(parts.values()), digits, unit=" ms"), va="bottom", ha="right")
        _draw_bar(axes, row, {index: max(parts.get(order[index], 0.0), 0.0) for index in indices}, longest)
    _set_length_axis(axes, longest, "ms")
    _draw_key(figure, bars, order, indices, digits)
    return figure


def _draw_bar(axes: Axes, row: int, sizes: Mapping[int, float], longest: float) -> None:
    """A bar of segments by category, numbered from 1 where the number fits."""
    drawn = {index: length for index, length in sizes.items() if length}
    ends = list(accumulate(drawn.values()))
    begins = [end - length for end, length in zip(ends, drawn.values(), strict=True)]
    looks = [_look(index) for index in drawn]
    boxes = axes.barh(
        [-row] * len(drawn),
        list(drawn.values()),
        0.5,
        left=begins,
        color=[look["facecolor"] for look in looks],
        hatch=[look["hatch"] for look in looks],
        edgecolor=COLOURS["page"],
    )
    for box, begin, (index, length) in zip(boxes, begins, drawn.items(), strict=True):
        box.set_gid(f"bar-{row}-{index}")
        if length / longest > 0.012 * len(f"{index + 1}") + 0.01:
            ground = {"facecolor": CYCLE[index % len(CYCLE)], "edgecolor": "none", "pad": 0.8}
            axes.text(
                begin + length / 2,
                -row,
                f"{index + 1}",
                ha="center",
                va="center",
                fontsize=8,
                color=COLOURS["page"],
                bbox=ground,
            )


class _Look(TypedDict):
    """Colour and pattern of a category, as matplotlib names them."""

    facecolor: str
    hatch: str
    edgecolor: str


def _look(index: int) -> _Look:
    hatch = _HATCHES[index // len(CYCLE) % len(_HATCHES)]
    return _Look(facecolor=CYCLE[index % len(CYCLE)], hatch=hatch, edgecolor=COLOURS["page"])


def _draw_key(figure: Figure, bars: Sequence[Bar], order: Sequence[str], indices: Sequence[int], digits: int) -> None:
    """Number, name and times of every category, below the bars."""
    from matplotlib.patches import Patch

    labels = []
    for index in indices:
        values = " / ".join(number(parts.get(order[index], 0.0), digits) for _, parts in bars) if len(bars) < 4 else ""
        name = fitted(category(order[index]), 2.9 - len(values) / 13)
        labels.append(f"{index + 1}  {name}: {values}" if values else f"{index + 1}  {name}")
    patches = [Patch(**_look(index)) for index in indices]
    figure.legend(
        patches,
        labels,
        loc="lower left",
        ncols=2,
        bbox_to_anchor=(0.01, 0, 0.98, 0),
        mode="expand",
        borderaxespad=0,
        labelspacing=0.35,
    )


def _set_length_axis(axes: Axes, longest: float, unit: str) -> None:
    values = ticks(0, longest)
    axes.set_xticks(values, [tick_text(value) if value else f"0 {unit}" for value in values])
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


@dataclass(frozen=True)
class _Row:
    """A row of a waterfall, from `begin` to `end` in ms."""

    name: str
    begin: float
    end: float
    colour: str
    text: str


def waterfall(
    title: str, ends: tuple[tuple[str, float], tuple[str, float]], changes: Sequence[tuple[str, float]]
) -> Chart | None:
    """From the reference's ms to the other's, a row for every change.

    Args:
        ends: name and ms of both.
        changes: name and ms, in order; they add up to the difference of the ends. Small ones are drawn as a single one.
    """
    (reference, before), (arm, after) = ends
    digits = digits_of([before, after])
    level, rows = before, [_Row(reference, 0.0, before, _STEP, number(before, digits))]
    for name, change in _merged(changes, _SMALL * max(abs(before), abs(after))):
        colour = _COST if change > 0 else _GAIN
        rows.append(_Row(name, level, level + change, colour, number(change, digits, signed=True)))
        level += change
    rows.append(_Row(arm, 0.0, after, _STEP, number(after, digits)))
    if not any(row.begin or row.end for row in rows):
        return None
    description = ". ".join(f"{plain(row.name)} {row.text} ms" for row in rows)
    return Chart(title, f"{description}.", partial(_draw_waterfall, rows))


def _draw_waterfall(rows: Sequence[_Row]) -> Figure:
    figure, axes = canvas(0.75 + 0.27 * len(rows), (1.9, 0.9, 0.65, 0.05))
    edges = [0.0, *(edge for row in rows for edge in (row.begin, row.end))]
    margin = 0.02 * (max(edges) - min(edges))
    axes.set_xlim(min(edges) - (margin if min(edges) < 0 else 0), max(edges))
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    for index, row in enumerate(rows):
        _draw_row(axes, index, row, is_last=index + 1 == len(rows))
    axes.axvline(0, color=COLOURS["soft"], linewidth=0.8)
    names = [fitted(row.name, 1.75) for row in rows]
    axes.set_yticks([-index for index in range(len(rows))], names, fontsize=9, color=COLOURS["text"])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("ms per step")
    _draw_meanings(figure)
    return figure


def _draw_row(axes: Axes, index: int, row: _Row, *, is_last: bool) -> None:
    """A bar with its value at the right, and the line that leads to the next."""
    hatch = _HATCHES[1] if row.colour == _COST else ""
    length, page = row.end - row.begin, COLOURS["page"]
    (box,) = axes.barh([-index], [length], 0.68, left=row.begin, facecolor=row.colour, hatch=hatch, edgecolor=page)
    box.set_gid(f"row-{index}")
    place = ("axes fraction", "data")
    axes.annotate(row.text, (1, -index), (50, 0), place, "offset points", ha="right", va="center")
    if not is_last:
        style, colour = (0, (2, 2)), COLOURS["soft"]
        axes.plot([row.end] * 2, [-index, -index - 1], linestyle=style, color=colour, linewidth=0.8, zorder=0.5)


def _draw_meanings(figure: Figure) -> None:
    """What the colours of a waterfall mean."""
    from matplotlib.patches import Patch

    page = COLOURS["page"]
    patches = [
        Patch(facecolor=_GAIN, edgecolor=page),
        Patch(facecolor=_COST, edgecolor=page, hatch=_HATCHES[1]),
    ]
    names = ["less time", "more time"]
    figure.legend(patches, names, loc="lower left", bbox_to_anchor=(0.01, 0), borderaxespad=0, labelspacing=0.35)


def _merged(changes: Sequence[tuple[str, float]], smallest: float) -> list[tuple[str, float]]:
    """Changes below `smallest` as a single one, at the end, where there are several."""
    small = [change for _, change in changes if 0 < abs(change) < smallest]
    if len(small) < 2:
        return [(name, change) for name, change in changes if change]
    large = [(name, change) for name, change in changes if abs(change) >= smallest]
    return [*large, (f"{len(small)} smaller changes", sum(small))]


def lengths(title: str, rows: Sequence[tuple[int, str, float]], unit: str, digits: int) -> Chart | None:
    """A bar for every arm: its colour's index, its name and its size."""
    if max((size for _, _, size in rows), default=0.0) <= 0:
        return None
    description = ". ".join(f"{plain(name)}: {number(size, digits)} {unit}" for _, name, size in rows)
    return Chart(title, f"{description}.", partial(_draw_lengths, rows, unit, digits))


def _draw_lengths(rows: Sequence[tuple[int, str, float]], unit: str, digits: int) -> Figure:
    figure, axes = canvas(0.1 + 0.42 * len(rows), (0.15, 0.15, 0.02, 0.02))
    longest = max(size for _, _, size in rows)
    axes.set_xlim(0, longest)
    axes.set_ylim(-len(rows) + 0.6, 0.75)
    for row, (index, name, size) in enumerate(rows):
        value = number(size, digits, unit=f" {unit}")
        axes.text(0, -row + 0.22, f"{fitted(name, WIDTH - 1 - len(value) / 13)}: {value}", va="bottom")
        (box,) = axes.barh([-row], [max(size, 0)], 0.35, color=CYCLE[index % len(CYCLE)])
        box.set_gid(f"arm-{row}")
    axes.set_axis_off()
    return figure
