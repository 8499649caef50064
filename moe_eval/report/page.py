"""One HTML page that holds everything: no script, no font and no request goes out of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import resources
from itertools import count
from typing import Any

from moe_eval.report import tables, tables_arms
from moe_eval.report.figures import Figure, quality, speed, steps
from moe_eval.report.svg import element, escape
from moe_eval.report.text import LONGEST_SENTENCE, NONE, comparable, named, plain

# a sign and the colour of the border; the verdict itself is said in words
_SIGNS = {"pays": ("✓", "good"), "does not pay": ("✗", "bad"), "inconclusive": ("?", ""), "not comparable": ("≠", "")}
_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?( ?[x%])?( to [-+]?\d[\d,]*(\.\d+)?( ?[x%])?)?")
_LONG = 40  # characters of a cell that need not stay on one line
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def render(comparison: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The page of a comparison.

    Args:
        comparison: what compare.make gives; missing parts leave their section out or are said to be not measured.
        run: machine, versions, git, workload, schedule, started and asked, each optional.
    """
    style = resources.files("moe_eval.report").joinpath("style.css").read_text(encoding="utf-8")
    title = _title([named(arm.get("name")) for arm in comparison.get("arms") or ()])
    ids = (f"figure-{at}" for at in count(1))
    sections = [
        ("verdict", "Verdict", _verdicts(comparison)),
        ("speed", "Speed", _speed(comparison, ids)),
        ("steps", "Time per step", _steps(comparison, ids)),
        ("quality", "Quality", _quality(comparison, ids)),
        ("labels", "Labels that differ", _tables(each for pair in _pairs(comparison) for each in tables.labels(pair))),
        ("failed", "Skipped and failed arms", _tables(tables_arms.failed(comparison))),
        ("method", "How it was measured", _method(comparison, run)),
    ]
    sections = [each for each in sections if each[2]]
    links = "".join(element("li", element("a", escape(words), href=f"#{ident}")) for ident, words, _ in sections)
    body = "".join(
        element("section", element("h2", escape(words), id=f"{ident}-head"), inner, id=ident,
                aria_labelledby=f"{ident}-head")
        for ident, words, inner in sections
    )  # fmt: skip
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><meta name="referrer" content="no-referrer">'
        f"<title>moe-eval: {escape(title)}</title><style>\n{style}</style></head><body>"
        '<a class="skip" href="#verdict">Skip to the verdict</a>'
        f"<header><p>moe-eval report</p><h1>{escape(title)}</h1></header>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav><main>{body}</main></body></html>\n'
    )


def _title(names: list[str]) -> str:
    if len(names) < 2:
        return "".join(names) or "No arms"
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{', '.join(names[1:4])}{more} against {names[0]}"


def _pairs(comparison: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return list(comparison.get("pairs") or ())


def _verdicts(comparison: Mapping[str, Any]) -> str:
    pairs = _pairs(comparison)
    if not pairs:
        arms = [arm for arm in comparison.get("arms") or () if arm.get("status") in (None, "finished")]
        why = "One arm alone has no other to be compared with." if arms else "No arm has a result."
        return element("p", escape(f"Nothing was compared. {why}"))
    return "".join(_verdict(pair) for pair in pairs)


def _verdict(pair: Mapping[str, Any]) -> str:
    verdict = named(pair.get("verdict"))
    names = f"{named(pair.get('other'))} against {named(pair.get('reference'))}: "
    sign, kind = _SIGNS.get(verdict, ("·", ""))
    badge = element("span", escape(f"{sign} {verdict}"), class_="badge")
    parts = [element("h3", escape(names), badge)]
    parts.append(element("p", escape(plain(pair.get("sentence") or "", LONGEST_SENTENCE)), class_="sentence"))
    for words, key in (("Because: ", "because"), ("What would settle it: ", "settled_by")):
        if pair.get(key):
            parts.append(_told(words, plain(pair[key], LONGEST_SENTENCE)))
    if pair.get("differs"):
        lines = (element("li", escape(plain(each, LONGEST_SENTENCE))) for each in pair["differs"])
        parts.append(element("p", element("strong", "What differs:")) + element("ul", *lines))
    parts.append(_tables(tables.verdicts(pair)))
    return element("article", *parts, class_=kind or "open")


def _told(words: str, text: str) -> str:
    return element("p", element("strong", escape(words)), escape(text))


def _speed(comparison: Mapping[str, Any], ids: Iterator[str]) -> str:
    pairs = comparable(comparison)
    found = [each for pair in pairs for each in tables.of_speed(pair)]
    found += tables_arms.speed(comparison)
    drawn = speed(comparison, ids)
    return _figures(drawn) + _tables(found) if drawn or found else _nothing(comparison)


def _steps(comparison: Mapping[str, Any], ids: Iterator[str]) -> str:
    parts = []
    for shape, phases in steps(comparison, ids).items():
        parts.append(element("h3", escape(shape)))
        for phase in phases:
            parts += [element("h4", escape(phase.name)), _figures(phase.figures), _tables(phase.tables)]
    ceilings = [each for pair in comparable(comparison) for each in tables.ceilings(pair)]
    if ceilings:
        parts += [element("h3", "Ceilings and predictions"), _tables(ceilings)]
    return "".join(parts) or _nothing(comparison)


def _quality(comparison: Mapping[str, Any], ids: Iterator[str]) -> str:
    return _figures(quality(comparison, ids)) + _tables(tables.quality(comparison)) or _nothing(comparison)


def _method(comparison: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    found = (tables_arms.arms(comparison), tables_arms.schedules(comparison), tables_arms.method(run))
    return "".join(map(_tables, found))


def _nothing(comparison: Mapping[str, Any]) -> str:
    """Said where there is a pair of which this was not measured; without a pair the section is left out."""
    return element("p", "Not measured.") if comparable(comparison) else ""


def _figures(found: list[Figure]) -> str:
    return "".join(
        element(
            "figure",
            element("figcaption", element("strong", escape(each.title)), f" {escape(each.caption)}"),
            _box(each.title, each.svg),
        )
        for each in found
    )


def _box(name: str, inner: str) -> str:
    """A part that scrolls by itself where the page is narrow, by keyboard as well."""
    return element("div", inner, class_="box", role="region", tabindex="0", aria_label=name)


def _tables(found: Iterable[tables.Table]) -> str:
    return "".join(_box(each.caption, _table(each)) for each in found)


def _table(table: tables.Table) -> str:
    columns = list(zip(*table.rows, strict=True))
    numeric = [any(map(_NUMBER.fullmatch, each)) and all(map(_quantity, each)) for each in columns]
    heads = "".join(element("th", escape(each), scope="col", **_long(each)) for each in table.heads)
    rows = "".join(element("tr", *(_cell(text, at, numeric[at]) for at, text in enumerate(row))) for row in table.rows)
    return element(
        "table", element("caption", escape(table.caption)), element("thead", element("tr", heads)),
        element("tbody", rows),
    )  # fmt: skip


def _cell(text: str, at: int, numeric: bool) -> str:
    """The first names its row; long text may break anywhere, numbers stand at the right of their column."""
    if not at:
        return element("th", escape(text), scope="row", **_long(text))
    return element("td", escape(text), **(_long(text) or ({"class_": "number"} if numeric else {})))


def _long(text: str) -> dict[str, str | float]:
    return {"class_": "long"} if len(text) > _LONG else {}


def _quantity(text: str) -> bool:
    return text in ("-", "none", NONE) or _NUMBER.fullmatch(text) is not None
