"""The Markdown: its tables are the page's, and data stays text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from moe_eval.records.comparison import ComparisonRecord
from moe_eval.report import markdown
from tests.doubles import compared_arms
from tests.doubles.report_page import TITLES, read, replaced


def tables(text: str) -> dict[str, list[list[str]]]:
    """Tables by caption, with GitHub's rules: a pipe after a backslash is text, and so is what a backslash escapes."""
    by_caption: dict[str, list[list[str]]] = {}
    lines = text.split("\n")
    for at, line in enumerate(lines):
        if re.fullmatch(r"\|(-+\|)+", line):
            rows, end = [lines[at - 1]], at + 1
            while end < len(lines) and lines[end].startswith("|"):
                rows.append(lines[end])
                end += 1
            assert lines[at - 2] == ""
            cells = [[plain(cell.strip()) for cell in re.findall(r"((?:\\.|[^|\\])*)\|", row[1:])] for row in rows]
            assert {len(row) for row in cells} == {line.count("|") - 1}
            by_caption[plain(lines[at - 3].removeprefix("**").removesuffix("**"))] = cells
    return by_caption


def plain(text: str) -> str:
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text).replace("\u2060", "")


@pytest.mark.parametrize(
    "change", ["", "a|b", "<b>x</b> `code` *bold* _it_ @someone #12 [l](http://x) \\| ~~s~~\n\n# h"]
)
def test_the_tables_are_those_of_the_page(change: str) -> None:
    comparison = replaced(compared_arms.comparison(), lambda text: text + change)
    run = replaced(compared_arms.run(), lambda text: text + change)
    text = markdown.render(comparison, run)
    assert tables(text) == read(comparison, run).tables
    for match in re.finditer(r"[<`*@#|\[]", re.sub(r"(?m)^(#{2,4} |\|[-|]+\|$|\*\*)|\*\*$", "", text)):
        around = match.string[max(0, match.start() - 1) : match.end() + 1]
        assert match[0] == "|" or around[0] == "\\" or around[-1] in "\u2060 ", around


def test_the_verdicts_are_there() -> None:
    comparison = compared_arms.comparison()
    text = markdown.render(comparison, compared_arms.run())
    for pair in comparison.pairs:
        assert f"### {pair.other} against {pair.reference}: {pair.verdict.value}\n" in text
        for sentence in (pair.sentence, pair.because, pair.settled_by or ""):
            assert sentence in text
    assert "\n- GPU: NVIDIA H100 80GB HBM3 against NVIDIA B200\n" in text
    assert [line[3:] for line in text.split("\n") if line.startswith("## ")] == TITLES


@pytest.mark.parametrize("start", ["- item", "# head", "1. one", "+ plus", "=== under", "---"])
def test_a_sentence_is_neither_a_list_nor_a_heading(start: str) -> None:
    comparison = compared_arms.comparison()
    pair = replace(comparison.pairs[0], sentence=start)
    text = markdown.render(replace(comparison, pairs=(pair,)), None)
    line = next(line for line in text.split("\n") if plain(line) == start)
    assert re.match(r"\\[-#+=]|1\\\.", line)


def test_what_is_missing_is_left_out() -> None:
    comparison = compared_arms.comparison()
    pairs = tuple(replace(pair, shapes=(), quality=None, labels=()) for pair in comparison.pairs)
    text = markdown.render(replace(comparison, pairs=pairs), None)
    assert text.count("Not measured.") == 3
    assert "None" not in text
    empty = markdown.render(ComparisonRecord("", (), ()), None)
    assert empty == "## Verdict\n\nNothing was compared. No arm has a result."
