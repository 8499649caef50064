"""One HTML page that holds everything: no script, no font and no request goes out of it.

What is not the answer is folded. `#all` behind its address unfolds everything, on a screen and in print.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from itertools import count

import jinja2

from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.run import RunRecord
from moe_eval.records.verdicts import Verdict
from moe_eval.report import drawing, sections
from moe_eval.report.drawing import Chart
from moe_eval.report.task_changes import Example
from moe_eval.report.text import NONE, Table

# beside the word, so that no colour is needed
_SIGNS: Mapping[str, str] = {"good": "✓", "bad": "✗", "open": "?"}
_SIGN_OF = {
    Verdict.NO_DIFFERENCE.value: "=",
    Verdict.NOT_COMPARABLE.value: "≠",
    Verdict.QUICK_LOOK.value: "~",
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
    return _template().render(
        report=sections.of_report(comparison, run),
        style=resources.files("moe_eval.report").joinpath("style.css").read_text(encoding="utf-8"),
        draw=lambda chart: draw(chart, next(ids)),
    )


@cache  # compiling it takes longer than all else on a page without charts
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["a"] = isinstance
    environment.globals |= {"Table": Table, "Chart": Chart, "Example": Example, "Answer": sections.Answer}
    environment.filters |= {
        "long": _is_long,
        "cells": _cells,
        "sign": lambda word, kind: _SIGN_OF.get(word, _SIGNS[kind]),
    }
    text = resources.files("moe_eval.report").joinpath("page.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(text)


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
