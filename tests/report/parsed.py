"""A page of the report as a parser sees it, and what holds for every page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

from moe_eval.report import page
from tests.report import example

_VOID = {"meta"}


@dataclass
class Read(HTMLParser):
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


def read(comparison: dict[str, Any], run: dict[str, Any] | None = None) -> Read:
    html = page.render(comparison, example.run() if run is None else run)
    found = Read()
    found.feed(html)
    found.close()
    assert not found.open
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in found.elements:
        for key in ("aria-labelledby", "aria-describedby"):
            assert key not in attributes or attributes[key] in ids
        if "href" in attributes:
            assert str(attributes["href"])[0] == "#"
            assert str(attributes["href"])[1:] in ids
    shown = " ".join(found.text)
    assert not re.search(r"\b(nan|inf|None|null|undefined)\b", shown), shown
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        assert any(each.tag.endswith("}rect") or "marker" in each.get("class", "") for each in root.iter())
    return found


def replaced(value: Any, text: Callable[[str], str], *, keys: bool = False) -> Any:
    if isinstance(value, dict):
        return {text(key) if keys and key in _DATA_KEYS else key: replaced(each, text, keys=keys)
                for key, each in value.items()}  # fmt: skip
    if isinstance(value, list):
        return [replaced(each, text, keys=keys) for each in value]
    return text(value) if isinstance(value, str) and value not in _OWN else value


_OWN = {"pays", "not comparable", "inconclusive", "finished", "failed", "wall"}
_DATA_KEYS = {"prefill", "decode", "expert_gemm", "norm", "os", "torch", "digest"}
