"""A comparison as Markdown of GitHub's kind, short enough to be pasted into an issue."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moe_eval.records.comparison import ComparisonRecord
from moe_eval.records.run import RunRecord
from moe_eval.report import sections
from moe_eval.report.sections import Answer
from moe_eval.report.text import Table

# what Markdown or the HTML in it would read as more than text; a word of a name keeps its underscores
_ACTIVE = re.compile(r"([\\`*\[\]<>|~]|(?<!\w)_|_(?!\w)|&(?=[#\w]))")
_MENTION = re.compile(r"(?<![\w/])([@#])(?=\w)")
_LISTED, _NUMBERED = re.compile(r"^([-+=#])(?=\s|$|[-=#])"), re.compile(r"^(\d+)([.)])(?=\s|$)")
_ABSENT = "-"


def render(comparison: ComparisonRecord, run: RunRecord | None) -> str:
    """The header, the tiles as a table and the verdict of every pair, as the page has them, without what it folds.

    Of many arms, which have no column each, there is a row for every arm.
    """
    report = sections.of_report(comparison, run, is_short=True)
    parts = [f"## {escape(report.title)}", _paragraph(report.header)]
    parts += _tables(report.overview) or [_tiles(report.answers)]
    parts += [text for answer in report.answers for text in _verdict(answer)]
    parts += _tables(report.tasks)
    parts += ["\n".join(f"- {_paragraph(note)}" for note in report.notes)]
    return "\n\n".join(filter(None, parts))


def _tables(tables: Sequence[Table]) -> list[str]:
    return [
        text
        for table in tables
        for text in (
            _paragraph(table.caption),
            columns([*map(escape, table.heads)], [[*map(escape, row)] for row in table.rows]),
        )
    ]


def _tiles(answers: Sequence[Answer]) -> str:
    """A row for every figure and a column for every answer that has tiles."""
    answers = [answer for answer in answers if answer.tiles]
    titles = dict.fromkeys(tile.title for answer in answers for tile in answer.tiles)
    if not titles:
        return ""
    heads = [" ", *(escape(answer.title) for answer in answers)]
    lines = [{tile.title: tile.line for tile in answer.tiles} for answer in answers]
    rows = [[title, *(escape(by_title.get(title, _ABSENT)) for by_title in lines)] for title in titles]
    if any(answer.place for answer in answers):
        rows.insert(0, ["Speed at", *(escape(answer.place or _ABSENT) for answer in answers)])
    return columns(heads, rows)


def _verdict(answer: Answer) -> list[str]:
    if answer.verdict is None:
        return []
    lines = [f"{word} {_paragraph(text)}".lstrip() for word, text in answer.statements]
    differs = [f"- {_paragraph(text)}" for text in answer.differs]
    head = f"**{escape(f'{answer.title}: {answer.verdict.value}')}**"
    return ["\n\n".join([head, *lines, *(["\n".join(["What differs:", "", *differs])] if differs else [])])]


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
