"""The parts that charts are drawn of: SVG that takes its colours from the page."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from moe_eval.report.text import plain

WIDTH = 560
COLOURS, MARKERS = 7, 5
_LETTER = 6.6  # px, a little more than the mean letter of 12 px


def escape(text: str) -> str:
    """Text as HTML and SVG have it, within an attribute as well."""
    return html.escape(text, quote=True)


def element(name: str, *inner: str, **attributes: str | float) -> str:
    """An element; `inner` is markup, attributes are text. `class_` is class, other underscores are hyphens."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(place(value) if isinstance(value, (int, float)) else value)}"'
        for key, value in attributes.items()
    )
    return f"<{name}{shown}>{''.join(inner)}</{name}>"


def place(value: float) -> str:
    """A coordinate."""
    return f"{value:.3f}".rstrip("0").rstrip(".")


def label(text: str, x: float, y: float, kind: str = "", anchor: str = "start") -> str:
    """Text with its baseline at y."""
    return element("text", escape(text), x=x, y=y, text_anchor=anchor, **({"class_": kind} if kind else {}))


def fitted(text: str, width: float) -> str:
    """The text, cut so that it takes at most that many px."""
    return plain(text, max(4, int(width / _LETTER)))


def width_of(text: str) -> float:
    """About how many px the text takes."""
    return _LETTER * len(text)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def marker(which: int, x: float, y: float, size: float = 5.5, *, hollow: bool = False) -> str:
    """The shape and colour of an arm."""
    kind = f"marker s{which % COLOURS}" if hollow else f"marker f{which % COLOURS} s{which % COLOURS}"
    wide = size * 1.25
    points = {
        2: [(x, y - wide), (x + wide, y + size), (x - wide, y + size)],
        3: [(x, y - wide), (x + wide, y), (x, y + wide), (x - wide, y)],
        4: [(x - wide, y - size), (x + wide, y - size), (x, y + wide)],
    }.get(which % MARKERS)
    if points:
        return element("polygon", points=" ".join(f"{place(a)},{place(b)}" for a, b in points), class_=kind)
    if which % MARKERS == 1:
        return element("rect", x=x - size, y=y - size, width=2 * size, height=2 * size, class_=kind)
    return element("circle", cx=x, cy=y, r=size, class_=kind)


def key(names: Sequence[tuple[int, str]], top: float) -> tuple[str, float]:
    """The markers and names of arms in lines below `top`, and where the last line ends."""
    parts, x, y = [], 10.0, top + 14
    for which, name in names:
        shown = fitted(name, WIDTH - 60)
        needed = 18 + width_of(shown) + 18
        if x > 10 and x + needed > WIDTH:
            x, y = 10.0, y + 20
        parts += [marker(which, x + 4, y - 4), label(shown, x + 16, y)]
        x += needed
    return "".join(parts), y + 8


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from low to high."""
    step = _round_step((high - low) / about)
    first = math.ceil(low / step - 1e-9)
    return [round(at * step, 12) for at in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round ratios from low to high, 1 among them if it is inside."""
    if high / low < 3:
        return ticks(low, high)
    steps = range(math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9) + 1)
    every = max(1, math.ceil(len(steps) / 8))
    return [2.0**at for at in steps if at % every == 0]


def _round_step(least: float) -> float:
    size = 10.0 ** math.floor(math.log10(least))
    return next((each * size for each in (1, 2, 2.5, 5) if each * size >= least * (1 - 1e-9)), 10 * size)


def ratio_text(value: float) -> str:
    """A ratio of log_ticks; small ones are powers of two."""
    return f"1/{1 / value:,.0f}x" if value < 0.01 else f"{tick_text(value)}x"


def tick_text(value: float, *, signed: bool = False) -> str:
    """A tick's number without digits that say nothing."""
    if value == 0:
        return "0"
    return f"{value:{'+' if signed else ''},.6f}".rstrip("0").rstrip(".") if abs(value) >= 1e-6 else f"{value:.0e}"


def patterns(ident: str) -> str:
    """What `segment` and hatched boxes of one chart are filled with."""
    stripe = element("path", d="M0,7 L7,0", class_="stripe")
    dot = element("circle", cx=3, cy=3, r=1.1, class_="dot")
    hatch = element("pattern", stripe, id=f"{ident}-hatch", width=7, height=7, patternUnits="userSpaceOnUse")
    dots = element("pattern", dot, id=f"{ident}-dots", width=6, height=6, patternUnits="userSpaceOnUse")
    return element("defs", hatch, dots)


def segment(ident: str, at: int, box: tuple[float, float, float, float], owner: tuple[str, str] | None = None) -> str:
    """A box (x, y, width, height) of the colour and pattern of `at`, numbered from 1 where the number fits."""
    (x, y, wide, high), text, kind = box, f"{at + 1}", f"f{at % COLOURS}"
    parts = [element("rect", x=x, y=y, width=wide, height=high, class_=f"box {kind}")]
    pattern = ("", "hatch", "dots")[at // COLOURS % 3]
    if pattern:
        parts.append(element("rect", x=x, y=y, width=wide, height=high, fill=f"url(#{ident}-{pattern})"))
    if wide > width_of(text) + 5:
        inner = f"on o{at % COLOURS}"
        parts.append(element("text", escape(text), x=x + wide / 2, y=y + high / 2 + 4, text_anchor="middle",
                             class_=inner))  # fmt: skip
    data = {"data_arm": owner[0], "data_category": owner[1]} if owner else {}
    return element("g", *parts, **data)


def drawing(ident: str, title: str, told: str, height: float, *inner: str) -> str:
    """A whole chart.

    Args:
        ident: unique on the page.
        told: every number of the chart in words, for those who do not see it.
    """
    return element(
        "svg",
        element("title", escape(title), id=f"{ident}-title"),
        element("desc", escape(told), id=f"{ident}-desc"),
        *inner,
        xmlns="http://www.w3.org/2000/svg", role="img", viewBox=f"0 0 {WIDTH} {place(height)}",
        aria_labelledby=f"{ident}-title", aria_describedby=f"{ident}-desc",
    )  # fmt: skip
