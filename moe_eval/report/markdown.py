"""A comparison as Markdown of GitHub's kind, to be pasted into an issue."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from moe_eval.report import tables, tables_arms
from moe_eval.report.quality_table import columns
from moe_eval.report.text import LONGEST_SENTENCE, comparable, named, plain

# what Markdown or the HTML in it would read as more than text; a word of a name keeps its underscores
_ACTIVE = re.compile(r"([\\`*\[\]<>|~]|(?<!\w)_|_(?!\w)|&(?=[#\w]))")
_MENTION = re.compile(r"(?<![\w/])([@#])(?=\w)")
_LISTED, _NUMBERED = re.compile(r"^([-+=#])(?=\s|$|[-=#])"), re.compile(r"^(\d+)([.)])(?=\s|$)")


def render(comparison: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The verdicts and tables of page.render; what is missing is missing here as well."""
    pairs = list(comparison.get("pairs") or ())
    parts = ["## Verdict"]
    for pair in pairs:
        parts += _verdict(pair)
    if not pairs:
        parts.append("Nothing was compared.")
    usable = comparable(comparison)
    speed = [each for pair in usable for each in tables.of_speed(pair)]
    steps = [each for pair in usable for each in _steps(pair)]
    speed += tables_arms.speed(comparison)
    steps += [each for one in tables_arms.traced(comparison) for each in tables_arms.steps(*one)]
    method = [*tables_arms.arms(comparison), *tables_arms.schedules(comparison), *tables_arms.method(run)]
    sections = (
        ("Speed", speed, bool(usable)),
        ("Time per step", steps, bool(usable)),
        ("Quality", tables.quality(comparison), bool(usable)),
        ("Labels that differ", [each for pair in pairs for each in tables.labels(pair)], False),
        ("Skipped and failed arms", tables_arms.failed(comparison), False),
        ("How it was measured", method, False),
    )
    for words, found, expected in sections:
        if found or expected:
            parts += [f"## {words}", *(_table(each) for each in found)]
            parts += [] if found else ["Not measured."]
    return "\n\n".join(parts) + "\n"


def _verdict(pair: Mapping[str, Any]) -> list[str]:
    names = f"{named(pair.get('other'))} against {named(pair.get('reference'))}: {named(pair.get('verdict'))}"
    parts = [f"### {escape(names)}"]
    for words, key in (("", "sentence"), ("Because: ", "because"), ("What would settle it: ", "settled_by")):
        if pair.get(key):
            parts.append(words + _paragraph(pair[key]))
    if pair.get("differs"):
        lines = (f"- {_paragraph(each)}" for each in pair["differs"])
        parts.append("\n".join(["What differs:", "", *lines]))
    return [*parts, *(_table(each) for each in tables.verdicts(pair))]


def _steps(pair: Mapping[str, Any]) -> Iterable[tables.Table]:
    for shape in pair.get("shapes") or ():
        for phase in dict.fromkeys([*(shape.get("breakdown") or {}), *(shape.get("kernels") or {})]):
            yield from tables.kernels(pair, shape, phase)
    yield from tables.ceilings(pair)


def _table(table: tables.Table) -> str:
    rows = [[escape(each) for each in row] for row in table.rows]
    return f"**{escape(table.caption)}**\n\n{columns([escape(each) for each in table.heads], rows)}"


def _paragraph(text: str) -> str:
    """Text of its own that is neither a list nor a heading."""
    return _NUMBERED.sub(r"\1\\\2", _LISTED.sub(r"\\\1", escape(plain(text, LONGEST_SENTENCE))))


def escape(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no column, and nobody is mentioned."""
    return _MENTION.sub("\\1\u2060", _ACTIVE.sub(r"\\\1", text))
