"""A comparison as Markdown of GitHub's kind, to be pasted into an issue."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.run import RunRecord
from moe_eval.report import sections
from moe_eval.report.drawing import Chart
from moe_eval.report.sections import Heading, PairVerdict, Part
from moe_eval.report.text import Table

# what Markdown or the HTML in it would read as more than text; a word of a name keeps its underscores
_ACTIVE = re.compile(r"([\\`*\[\]<>|~]|(?<!\w)_|_(?!\w)|&(?=[#\w]))")
_MENTION = re.compile(r"(?<![\w/])([@#])(?=\w)")
_LISTED, _NUMBERED = re.compile(r"^([-+=#])(?=\s|$|[-=#])"), re.compile(r"^(\d+)([.)])(?=\s|$)")


def render(comparison: ComparisonRecord, run: RunRecord | None) -> str:
    """The verdicts and tables of page.render; what is missing is missing here as well."""
    texts = []
    for section in sections.of_report(comparison, run):
        texts.append(f"## {section.title}")
        texts += [text for part in section.parts for text in _texts(part)]
    return "\n\n".join(texts)


def _texts(part: Part) -> list[str]:
    if isinstance(part, Chart):
        return []
    if isinstance(part, Table):
        return [_table(part)]
    if isinstance(part, PairVerdict):
        return _verdict(part)
    return [f"{'#' * part.level} {escape(part.text)}" if isinstance(part, Heading) else _paragraph(part.text)]


def _verdict(pair: PairVerdict) -> list[str]:
    parts = [f"### {escape(f'{pair.names}: {pair.verdict.value}')}"]
    parts += [f"{word} {_paragraph(text)}".lstrip() for word, text in pair.statements]
    if pair.differs:
        parts.append("\n".join(["What differs:", "", *(f"- {_paragraph(text)}" for text in pair.differs)]))
    return [*parts, *map(_table, pair.tables)]


def _table(table: Table) -> str:
    rows = [[escape(text) for text in row] for row in table.rows]
    return f"**{escape(table.caption)}**\n\n{columns([escape(text) for text in table.heads], rows)}"


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table that is aligned as plain text as well."""
    table = [heads, *rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(heads))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _paragraph(text: str) -> str:
    """Text of its own that is neither a list nor a heading."""
    return _NUMBERED.sub(r"\1\\\2", _LISTED.sub(r"\\\1", escape(text)))


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no column, and nobody is mentioned."""
    return _MENTION.sub("\\1\u2060", _ACTIVE.sub(r"\\\1", text))
