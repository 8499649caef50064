"""The report as one picture: header, tiles and up to two charts side by side."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moe_eval.records.comparison import ComparisonRecord
from moe_eval.report import sections
from moe_eval.report.drawing import COLOURS, LETTERS_PER_INCH, WIDTH, fitted, style
from moe_eval.report.sections import Answer
from moe_eval.report.tiles import Tile

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

_GAP = 0.7  # inches
_WIDE = 2 * (WIDTH + _GAP)
_HEAD, _NAME, _TILE, _TITLE = 0.65, 0.34, 0.95, 0.45  # inches
_EDGES = {"good": COLOURS["c2"], "bad": COLOURS["c1"], "open": COLOURS["line"]}
_MOST_CHARTS = 2
_LEAST_SLOTS = 5  # so that a single tile is no banner


def write(comparison: ComparisonRecord, file: Path) -> bool:
    """Write the picture whole or not at all, on white.

    Returns:
        Whether there is one: without tiles and charts there is nothing to see.
    """
    report = sections.of_report(comparison, None, is_short=True)
    if not any(answer.tiles for answer in report.answers) and not report.charts:
        return False
    drawn = io.BytesIO()
    with style():
        figure = _figure(report)
        figure.savefig(drawn, format="png", dpi=150, metadata={"Software": None})
    written = file.with_name(f".{file.name}.new")
    written.write_bytes(drawn.getvalue())
    os.replace(written, file)
    return True


def _figure(report: sections.Report) -> Figure:
    from matplotlib.figure import Figure

    charts = report.charts[:_MOST_CHARTS]
    answers = [_NAME + (_TILE if answer.tiles else 0) for answer in report.answers]
    charts_height = _TITLE + max((chart.height for chart in charts), default=0.0) if charts else 0.05
    heights = [_HEAD, *answers, charts_height]
    figure = Figure(figsize=(_WIDE, sum(heights)), facecolor=COLOURS["page"])
    head, *rows, below = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    head.text(0.02, 0.8, fitted(report.title, _WIDE - 1), fontsize=15, weight="bold", va="top")
    more = f" · the best {len(report.answers)} arms" if report.overview else ""
    head.text(0.02, 0.32, fitted(report.header + more, 1.2 * _WIDE), color=COLOURS["soft"], va="top")
    for answer, row, height in zip(report.answers, rows, answers, strict=True):
        _draw_answer(answer, row, height)
    if charts:
        sides = below.subfigures(1, 4, squeeze=False, width_ratios=[WIDTH, _GAP] * _MOST_CHARTS)[0]
        for chart, side in zip(charts, sides[::2], strict=False):
            rest = charts_height - chart.height - _TITLE
            parts = side.subfigures(3, 1, height_ratios=[_TITLE, chart.height, max(rest, 1e-3)])
            title = textwrap.fill(fitted(chart.title, 2 * WIDTH - 1), int(0.8 * WIDTH * LETTERS_PER_INCH))
            parts[0].text(0.04, 0.4, title, weight="bold", va="center")
            chart.draw(parts[1])
    return figure


def _draw_answer(answer: Answer, figure: SubFigure, height: float) -> None:
    verdict = f": {answer.verdict.value}" if answer.verdict else ""
    place = f", {answer.place}" if answer.place else ""
    name = fitted(f"{answer.title}{verdict}{place}", _WIDE)
    figure.text(0.02, 1 - 0.5 * _NAME / height, name, fontsize=11, weight="bold", va="center")
    _draw_tiles(answer.tiles, figure, height)


def _draw_tiles(tiles: Sequence[Tile], figure: SubFigure, height: float) -> None:
    from matplotlib.patches import Rectangle

    share = 0.96 / max(len(tiles), _LEAST_SLOTS)
    top = 1 - _NAME / height
    for at, tile in enumerate(tiles):
        edge, width = 0.02 + at * share, share - 0.01
        box = (edge, 0.06), width, top - 0.06
        figure.add_artist(Rectangle(*box, facecolor=COLOURS["panel"], edgecolor="none"))
        figure.add_artist(Rectangle(box[0], 0.004, box[2], facecolor=_EDGES[tile.kind], edgecolor="none"))
        room = width * _WIDE - 0.2
        letters = int(room * LETTERS_PER_INCH * 9 / 7)
        detail = [*(line for part in tile.detail.split(", ") for line in textwrap.wrap(part, letters)), "", ""]
        lines = (
            (tile.title, 8, "normal", 0.13),
            (tile.value, 13, "bold", 0.34),
            (detail[0], 7, "normal", 0.53),
            (detail[1], 7, "normal", 0.65),
            (tile.verdict, 8, "bold", 0.80),
        )
        for text, size, weight, down in lines:
            fitting = fitted(text, room * 9 / size)
            figure.text(edge + 0.012, top - down / height, fitting, fontsize=size, weight=weight, va="center")
