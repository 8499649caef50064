"""Charts of lengths: kernel time by category, from one step to another, and divergence by arm."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypedDict

from moe_eval.report.drawing import COLOURS, CYCLE, WIDTH, Chart, canvas, fitted, row_canvas, tick_text
from moe_eval.report.text import category, digits_of, number, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Bar = tuple[str, Mapping[str, float]]  # an arm's name and its ms by category
_HATCHES = ("", "////", "\\\\\\\\")
_SMALL = 0.002  # of a step: changes below it have no row of their own in a waterfall
_GAIN, _COST, _STEP = COLOURS["c2"], COLOURS["c1"], COLOURS["c5"]


def stacked(title: str, bars: Sequence[Bar], order: Sequence[str], grey: Collection[str] = ()) -> Chart | None:
    """Stack ms by category, one bar an arm.

    Args:
        order: of the categories, which gives number, colour and pattern.
        grey: names of arms that are drawn without colours.
    """
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
    return Chart(title, f"{description}.", partial(_draw_stacked, bars, order, indices, digits, grey))


class _Look(TypedDict):
    """Colour and pattern of a category, as matplotlib names them."""

    facecolor: str
    hatch: str
    edgecolor: str


def _draw_stacked(
    bars: Sequence[Bar], order: Sequence[str], indices: Sequence[int], digits: int, grey: Collection[str]
) -> Figure:
    """Segments are numbered from 1 where the number fits. The key has the numbers' names and times."""
    from matplotlib.patches import Patch

    totals = [sum(parts.values()) for _, parts in bars]
    names = [
        f"{fitted(name, WIDTH - 1.5)}: {number(total, digits)} ms"
        for (name, _), total in zip(bars, totals, strict=True)
    ]
    figure, axes = row_canvas(names, 0.55, bottom=0.55 + 0.19 * ((len(indices) + 1) // 2))
    axes.set_xlim(0, max(totals))
    axes.xaxis.set_major_formatter(lambda value, _: tick_text(value))
    axes.set_xlabel("ms per step")
    ends, keys = [0.0] * len(bars), list[Patch]()
    for index in indices:
        values = [parts.get(order[index], 0.0) for _, parts in bars]
        times = " / ".join(number(value, digits) for value in values) if len(bars) < 4 else ""
        label = f"{index + 1}  {fitted(category(order[index]), 2.9 - len(times) / 13)}"
        colour = CYCLE[index % len(CYCLE)]
        hatch = _HATCHES[index // len(CYCLE) % len(_HATCHES)]
        look = _Look(facecolor=colour, hatch=hatch, edgecolor=COLOURS["page"])
        keys.append(Patch(label=f"{label}: {times}" if times else label, **look))
        rows = [row for row, value in enumerate(values) if value > 0]
        boxes = axes.barh(rows, [values[row] for row in rows], 0.5, left=[ends[row] for row in rows], **look)
        smallest = (0.012 * len(f"{index + 1}") + 0.01) * max(totals)
        numbers = [f"{index + 1}" if values[row] > smallest else "" for row in rows]
        ground = {"facecolor": colour, "edgecolor": "none", "pad": 0.8}
        axes.bar_label(boxes, numbers, label_type="center", fontsize=8, color=COLOURS["page"], bbox=ground)
        for row, box in zip(rows, boxes, strict=True):
            box.set_gid(f"bar-{row}-{index}")
            if bars[row][0] in grey:
                box.set_facecolor(_STEP)
            ends[row] += values[row]
    place = (0.01, 0, 0.98, 0)
    figure.legend(
        handles=keys,
        loc="lower left",
        ncols=2,
        bbox_to_anchor=place,
        mode="expand",
        borderaxespad=0,
        labelspacing=0.35,
    )
    return figure


@dataclass(frozen=True)
class _Row:
    """A row of a waterfall, from `begin` to `end` in ms."""

    name: str
    begin: float
    end: float
    colour: str
    text: str


def waterfall(
    title: str,
    ends: tuple[tuple[str, float], tuple[str, float]],
    changes: Sequence[tuple[str, float]],
    *,
    is_grey: bool = False,
) -> Chart | None:
    """From the reference's ms to the other's, a row for every change.

    Args:
        ends: name and ms of both.
        changes: name and ms, in order; they add up to the difference of the ends. Small ones are drawn as a single one.
        is_grey: without colours.
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
    return Chart(title, f"{description}.", partial(_draw_waterfall, rows, is_grey=is_grey))


def _draw_waterfall(rows: Sequence[_Row], *, is_grey: bool) -> Figure:
    """Every bar has its value at the right, and a line that leads to the next."""
    from matplotlib.patches import Patch

    figure, axes = canvas(0.75 + 0.27 * len(rows), (1.9, 0.9, 0.65, 0.05))
    edges = [0.0, *(edge for row in rows for edge in (row.begin, row.end))]
    margin = 0.02 * (max(edges) - min(edges))
    axes.set_xlim(min(edges) - (margin if min(edges) < 0 else 0), max(edges))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    boxes = axes.barh(
        range(len(rows)),
        [row.end - row.begin for row in rows],
        0.68,
        left=[row.begin for row in rows],
        color=[_STEP if is_grey else row.colour for row in rows],
        hatch=[_HATCHES[row.colour == _COST] for row in rows],
        edgecolor=COLOURS["page"],
    )
    ends, below, soft = [row.end for row in rows[:-1]], range(1, len(rows)), COLOURS["soft"]
    axes.vlines(ends, range(len(ends)), below, colors=soft, linestyles=(0, (2, 2)), linewidth=0.8, zorder=0.5)
    axes.axvline(0, color=soft, linewidth=0.8)
    for index, (box, row) in enumerate(zip(boxes, rows, strict=True)):
        box.set_gid(f"row-{index}")
        place = ("axes fraction", "data")
        axes.annotate(row.text, (1, index), (50, 0), place, "offset points", ha="right", va="center")
    axes.set_yticks(range(len(rows)), [fitted(row.name, 1.75) for row in rows], fontsize=9, color=COLOURS["text"])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("ms per step")
    patches = [
        Patch(facecolor=_STEP if is_grey else _GAIN, edgecolor=COLOURS["page"], label="less time"),
        Patch(facecolor=_STEP if is_grey else _COST, edgecolor=COLOURS["page"], hatch=_HATCHES[1], label="more time"),
    ]
    figure.legend(handles=patches, loc="lower left", bbox_to_anchor=(0.01, 0), borderaxespad=0, labelspacing=0.35)
    return figure


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
    names = [f"{fitted(name, WIDTH - 2)}: {number(size, digits)} {unit}" for _, name, size in rows]
    figure, axes = row_canvas(names, 0.42, bottom=0.1)
    colours = [CYCLE[index % len(CYCLE)] for index, _, _ in rows]
    boxes = axes.barh(range(len(rows)), [max(size, 0) for _, _, size in rows], 0.35, color=colours)
    for row, box in enumerate(boxes):
        box.set_gid(f"arm-{row}")
    axes.set_xlim(0, max(size for _, _, size in rows))
    axes.set_axis_off()
    return figure
