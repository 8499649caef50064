"""One HTML page that holds everything: no script, no font and no request goes out of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources
from itertools import count

import jinja2

from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.run import RunRecord
from moe_eval.records.verdicts import Verdict
from moe_eval.report import drawing, sections
from moe_eval.report.drawing import Chart
from moe_eval.report.sections import Heading, PairVerdict, Paragraph
from moe_eval.report.text import NONE, Table

# a sign and the kind of border; the verdict itself is said in words
_SIGNS = {
    Verdict.PAYS: ("✓", "good"),
    Verdict.SLOWER: ("✗", "bad"),
    Verdict.NO_DIFFERENCE: ("=", "open"),
    Verdict.OPEN: ("?", "open"),
    Verdict.BROKEN: ("✗", "bad"),
    Verdict.NOT_COMPARABLE: ("≠", "open"),
    Verdict.QUICK_LOOK: ("~", "open"),
}
_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?( ?[x%])?( to [-+]?\d[\d,]*(\.\d+)?( ?[x%])?)?")
_LONG = 40  # characters of a cell that need not stay on one line


def render(comparison: ComparisonRecord, run: RunRecord | None, draw: Callable[[Chart, str], str] = drawing.svg) -> str:
    """The page of a comparison. What was not measured is left out, or said to be not measured.

    Args:
        run: how it was measured, where one run says so.
        draw: makes the SVG of a chart with this id.
    """
    ids = (f"figure-{index}" for index in count(1))
    files = resources.files("moe_eval.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["a"] = isinstance
    environment.globals |= {kind.__name__: kind for kind in (Heading, Paragraph, PairVerdict, Table)}
    environment.filters |= {
        "long": _is_long,
        "cells": _cells,
        "sign": lambda verdict: _SIGNS[verdict][0],
        "kind": lambda verdict: _SIGNS[verdict][1],
    }
    template = environment.from_string(files.joinpath("page.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        title=sections.title_of(comparison),
        sections=sections.of_report(comparison, run),
        style=files.joinpath("style.css").read_text(encoding="utf-8"),
        draw=lambda chart: draw(chart, next(ids)),
    )


def _cells(table: Table) -> list[list[tuple[str, str]]]:
    """Cells with their class: long text may break anywhere, numbers stand at the right of their column."""
    columns = zip(*table.rows, strict=True)
    numeric = [any(map(_NUMBER.fullmatch, column)) and all(map(_is_quantity, column)) for column in columns]
    return [
        [(text, "long" if _is_long(text) else "number" if numeric[at] and at else "") for at, text in enumerate(row)]
        for row in table.rows
    ]


def _is_long(text: str) -> bool:
    return len(text) > _LONG


def _is_quantity(text: str) -> bool:
    return text in ("-", "none", NONE) or _NUMBER.fullmatch(text) is not None
