"""Draws a chart with matplotlib as SVG that takes its colours from the page."""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from importlib import resources
from typing import TYPE_CHECKING

from moe_eval.frozen import frozen
from moe_eval.report.text import plain

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

WIDTH = 4.3  # inches: text of 9 points can be read where a phone shows that in 360 pixels
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
    "lines.markersize": 6.5,
}


@frozen
class Chart:
    """A chart that can be drawn.

    Attributes:
        description: every number of the chart in words, for those who do not see it.
        height: in inches. The width is WIDTH.
        draw: draws it into a figure of that size. Call it inside `style`.
        tips: what a part of the drawing says under the pointer, by the part's id.
        caption: what is said beside it.
    """

    title: str
    description: str
    height: float
    draw: Callable[[FigureBase], None]
    tips: Mapping[str, str] = field(default_factory=dict)
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
    from matplotlib.figure import Figure

    drawn = io.BytesIO()
    with style():
        figure = Figure(figsize=(WIDTH, chart.height))
        chart.draw(figure)
        figure.savefig(drawn, format="svg", metadata={"Date": None}, transparent=True)
    root = ET.fromstring(drawn.getvalue())
    for element in list(root):
        if element.tag.endswith("}metadata") or element.find(".//{*}style") is not None:
            root.remove(element)
    for element in list(root.iter()):
        tip = chart.tips.get(element.get("id", ""))
        _make_inline(element, ident)
        if tip is not None:
            element.insert(0, _texted("title", tip))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {
        "xmlns": "http://www.w3.org/2000/svg",
        "role": "img",
        "aria-labelledby": f"{ident}-title",
        "aria-describedby": f"{ident}-desc",
    }
    for name, text in (("desc", chart.description), ("title", chart.title)):
        root.insert(0, _texted(name, text, id=f"{ident}-{name}"))
    return re.sub(r"\s*\n\s*", " ", ET.tostring(root, encoding="unicode", short_empty_elements=False))


def _texted(tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.Element(tag, attributes)
    element.text = text
    return element


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


def canvas(figure: FigureBase, height: float, margins: tuple[float, float, float, float]) -> Axes:
    """Axes in an empty figure of WIDTH.

    Args:
        height: of the figure in inches.
        margins: outside the axes, in inches: left, right, bottom, top.
    """
    begin, end, bottom, top = margins
    box = (begin / WIDTH, bottom / height, (WIDTH - begin - end) / WIDTH, (height - bottom - top) / height)
    return figure.add_axes(box)


def add_key(axes: Axes, handles: Sequence[Artist], names: Sequence[str]) -> None:
    """A legend above the axes from the left of the figure, of key_height's lines."""
    box = axes.get_position()
    axes.legend(
        handles,
        names,
        ncols=_columns(names),
        handletextpad=0.4,
        borderaxespad=0.7,
        columnspacing=1.2,
        loc="lower left",
        bbox_to_anchor=(-box.x0 / box.width, 1),
    )


def key_height(names: Sequence[str]) -> float:
    """Inches that a legend of these names takes above the axes."""
    return 0.15 + 0.2 * math.ceil(len(names) / _columns(names))


def _columns(names: Sequence[str]) -> int:
    return max(1, min(len(names), int(WIDTH * LETTERS_PER_INCH) // (max(map(len, names), default=1) + 6)))


def fitted(text: str, width: float) -> str:
    """The text, cut so that it takes at most that many inches."""
    return plain(text, max(4, int(width * LETTERS_PER_INCH)))


def tick_text(value: float, *, signed: bool = False) -> str:
    """A tick's number without digits that say nothing."""
    if abs(value) < 1e-12:
        return "0"
    return f"{value:{'+' if signed else ''},.6f}".rstrip("0").rstrip(".") if abs(value) >= 1e-6 else f"{value:.0e}"
