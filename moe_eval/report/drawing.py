"""Draws a chart with matplotlib: as SVG that takes its colours from the page, and as PNG."""

from __future__ import annotations

import io
import logging
import os
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from moe_eval.report.text import plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches; 504 points
_CSS = resources.files("moe_eval.report").joinpath("style.css").read_text(encoding="utf-8")
# the light theme, which has a dark one by the same names
COLOURS: dict[str, str] = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", _CSS.partition("@media")[0]))
CYCLE = tuple(colour for name, colour in COLOURS.items() if re.fullmatch(r"c\d", name))
MARKERS = "os^Dv"
LETTERS_PER_INCH = 13.5  # a little fewer than the mean letter of 9 points needs
_VARIABLES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}
_HEX = re.compile(r"#[0-9a-f]{6}")
_FONT = re.compile(r"font: (?:[\w-]+ )*([\d.]+px)[^;]*|font-family: [^;]*;? ?")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moe_eval",  # else ids differ from drawing to drawing
    "text.parse_math": False,  # a dollar in a name is a dollar
    "text.color": COLOURS["text"],
    "font.size": 9.0,
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "axes.labelsize"), 8.0),
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), COLOURS["soft"]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linestyle": (0, (2, 3)),
    "legend.frameon": False,
    "hatch.linewidth": 1.0,
    "lines.markersize": 7.0,
}


@dataclass(frozen=True)
class Chart:
    """A chart that can be drawn.

    Attributes:
        description: every number of the chart in words, for those who do not see it.
        draw: makes the figure. Call it inside `style`.
        caption: what is said beside it.
    """

    title: str
    description: str
    draw: Callable[[], Figure]
    caption: str = ""


@contextmanager
def style() -> Iterator[None]:
    """Draw inside with our style alone, whatever the user's matplotlib has, and without warnings of missing glyphs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        import matplotlib.style

        with matplotlib.style.context(["default", _STYLE], after_reset=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def svg(chart: Chart, ident: str) -> str:
    """The chart as an element for a page. Its ids begin with `ident`, which is unique on the page."""
    drawn = io.BytesIO()
    with style():
        chart.draw().savefig(drawn, format="svg", metadata={"Date": None}, transparent=True)
    root = ET.fromstring(drawn.getvalue())
    for element in list(root):
        if element.tag.endswith("}metadata") or element.find(".//{*}style") is not None:
            root.remove(element)
    for element in root.iter():
        _make_inline(element, ident)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {
        "xmlns": "http://www.w3.org/2000/svg",
        "role": "img",
        "aria-labelledby": f"{ident}-title",
        "aria-describedby": f"{ident}-desc",
    }
    for name, text in (("desc", chart.description), ("title", chart.title)):
        element = ET.Element(name, id=f"{ident}-{name}")
        element.text = text
        root.insert(0, element)
    return re.sub(r"\s*\n\s*", " ", ET.tostring(root, encoding="unicode", short_empty_elements=False))


def png(chart: Chart, file: Path) -> None:
    """Write the chart whole or not at all as a picture on white, with its title."""
    drawn = io.BytesIO()
    with style():
        figure = chart.draw()
        figure.suptitle(fitted(chart.title, WIDTH), x=0.02, y=1.0, ha="left", va="bottom", fontsize=10)
        figure.savefig(drawn, format="png", dpi=200, bbox_inches="tight", metadata={"Software": None})
    written = file.with_name(f".{file.name}.new")
    written.write_bytes(drawn.getvalue())
    os.replace(written, file)


def _make_inline(element: ET.Element, ident: str) -> None:
    """Give an element of matplotlib ids of its own, the page's colours and the page's font."""
    element.tag = element.tag.rpartition("}")[2]
    attributes = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
    if "id" in attributes:
        attributes["id"] = f"{ident}-{attributes['id']}"
    if "href" in attributes:
        attributes["href"] = f"#{ident}-{attributes['href'][1:]}"
    if "fill" in attributes:  # an attribute knows no variables
        attributes["style"] = f"fill: {attributes.pop('fill')}; {attributes.get('style', '')}"
    if "style" in attributes:
        text = _FONT.sub(lambda match: f"font-size: {match[1]}" if match[1] else "", attributes["style"])
        attributes["style"] = _HEX.sub(lambda match: _VARIABLES.get(match[0], match[0]), text)
    element.attrib.clear()
    element.attrib |= {key: value.replace("url(#", f"url(#{ident}-") for key, value in attributes.items()}


def canvas(height: float, margins: tuple[float, float, float, float]) -> tuple[Figure, Axes]:
    """An empty figure with one pair of axes.

    Args:
        height: of the figure in inches.
        margins: outside the axes, in inches: left, right, bottom, top.
    """
    from matplotlib.figure import Figure

    begin, end, bottom, top = margins
    figure = Figure(figsize=(WIDTH, height))
    box = (begin / WIDTH, bottom / height, (WIDTH - begin - end) / WIDTH, (height - bottom - top) / height)
    return figure, figure.add_axes(box)


def row_canvas(names: Sequence[str], pitch: float, *, bottom: float) -> tuple[Figure, Axes]:
    """A figure with a row for every name, from 0 at the top, and the name above it.

    Args:
        pitch: of rows in inches. `bottom`: inches below the axes.
    """
    figure, axes = canvas(pitch * len(names) + bottom + 0.1, (0.15, 0.15, bottom, 0.1))
    axes.set_ylim(len(names) - 0.6, -0.75)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    ground = {"facecolor": COLOURS["page"], "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
    for row, name in enumerate(names):
        axes.text(0, row - 0.28, name, va="bottom", transform=axes.get_yaxis_transform(), bbox=ground)
    return figure, axes


def fitted(text: str, width: float) -> str:
    """The text, cut so that it takes at most that many inches."""
    return plain(text, max(4, int(width * LETTERS_PER_INCH)))


def tick_text(value: float, *, signed: bool = False) -> str:
    """A tick's number without digits that say nothing."""
    if abs(value) < 1e-12:
        return "0"
    return f"{value:{'+' if signed else ''},.6f}".rstrip("0").rstrip(".") if abs(value) >= 1e-6 else f"{value:.0e}"
