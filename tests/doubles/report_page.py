"""A page of the report as a parser sees it, and what holds for every page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import Enum
from html import escape
from html.parser import HTMLParser
from typing import Any, TypeVar

from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.run import RunRecord
from moe_eval.report import drawing, page
from moe_eval.report.drawing import Chart
from tests.doubles import compared_arms

TITLES = [
    "Verdict of every shape",
    "Speed: all figures",
    "Time per step: all shapes and phases",
    "Quality: all figures",
]
TITLES += ["Labels that differ", "Skipped and failed arms", "How it was measured"]
_VOID = {"meta"}
Value = TypeVar("Value")


@dataclass
class Page(HTMLParser):
    """Elements, headings, tables and text of a page."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    text: list[str] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    _rows: list[list[str]] = field(default_factory=list)
    _caption: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"
        if tag == "table":
            assert self._caption not in self.tables
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self._rows[-1][-1] += data
        elif self.open and self.open[-1] == "caption":
            self._caption += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def undrawn(chart: Chart, ident: str) -> str:
    """A chart with its words alone: drawing takes a tenth of a second."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="{ident}-t" aria-describedby="{ident}-d">'
        f'<title id="{ident}-t">{escape(chart.title)}</title><desc id="{ident}-d">{escape(chart.description)}</desc>'
        "<path></path></svg>"
    )


def html(comparison: ComparisonRecord, run: RunRecord | None = None, *, drawn: bool = False) -> str:
    return page.render(comparison, run, drawing.svg if drawn else undrawn)


def read(comparison: ComparisonRecord, run: RunRecord | None = None) -> Page:
    """Parse a page, with the example's run where none is named."""
    return parsed(html(comparison, compared_arms.run() if run is None else run))


def parsed(text: str) -> Page:
    """Parse a page, and see that it holds together."""
    parser = Page()
    parser.feed(text)
    parser.close()
    assert not parser.open
    ids = [attributes["id"] for _, attributes in parser.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in parser.elements:
        for key in ("aria-labelledby", "aria-describedby"):
            assert key not in attributes or attributes[key] in ids
        if "href" in attributes:
            assert str(attributes["href"])[0] == "#"
            assert str(attributes["href"])[1:] in ids
        for target in re.findall(r"url\(#(.+?)\)", " ".join(map(str, attributes.values()))):
            assert target in ids
    sentences = " ".join(parser.text)
    assert not re.search(r"\b(nan|inf|None|null|undefined)\b", sentences), sentences
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        assert any(element.tag.endswith("}path") for element in root.iter())
    return parser


def replaced(value: Value, text: Callable[[str], str], *, keys: bool = False) -> Value:
    """A record with every text of data changed, and with `keys` the keys of mappings that come from data."""

    def changed(item: Any) -> Any:
        if isinstance(item, Enum):
            return item
        if is_dataclass(item) and not isinstance(item, type):
            return replace(item, **{part.name: changed(getattr(item, part.name)) for part in fields(item)})
        if isinstance(item, Mapping):
            return {text(key) if keys and key in _DATA_KEYS else key: changed(part) for key, part in item.items()}
        if isinstance(item, tuple):
            return tuple(map(changed, item))
        return text(item) if isinstance(item, str) and item not in _OWN else item

    result: Value = changed(value)
    return result


_OWN = {"wall", "turns", "alternating", "e2e"}
_DATA_KEYS = {"prefill", "decode", "expert_gemm", "norm", "precisions", "torch"}
