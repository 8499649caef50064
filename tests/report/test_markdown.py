"""The Markdown: its tables are the page's, and data stays text."""

from __future__ import annotations

import re
from typing import Any

import pytest

from moe_eval.report import markdown
from tests.report import example
from tests.report.parsed import read, replaced


def tables(text: str) -> dict[str, list[list[str]]]:
    """Tables by caption, with GitHub's rules: a pipe after a backslash is text, and so is what a backslash escapes."""
    found: dict[str, list[list[str]]] = {}
    lines = text.split("\n")
    for at, line in enumerate(lines):
        if re.fullmatch(r"\|(-+\|)+", line):
            rows, end = [lines[at - 1]], at + 1
            while end < len(lines) and lines[end].startswith("|"):
                rows.append(lines[end])
                end += 1
            assert lines[at - 2] == ""
            cells = [[plain(cell.strip()) for cell in re.findall(r"((?:\\.|[^|\\])*)\|", row[1:])] for row in rows]
            assert {len(each) for each in cells} == {line.count("|") - 1}
            found[plain(lines[at - 3].removeprefix("**").removesuffix("**"))] = cells
    return found


def plain(text: str) -> str:
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text).replace("\u2060", "")


@pytest.mark.parametrize(
    "change", ["", "a|b", "<b>x</b> `code` *bold* _it_ @someone #12 [l](http://x) \\| ~~s~~\n\n# h"]
)
def test_the_tables_are_those_of_the_page(change: str) -> None:
    made, run = (replaced(each, lambda text: text + change) for each in (example.comparison(), example.run()))
    text = markdown.render(made, run)
    assert tables(text) == read(made, run).tables
    for found in re.finditer(r"[<`*@#|\[]", re.sub(r"(?m)^(#{2,3} |\|[-|]+\|$|\*\*)|\*\*$", "", text)):
        pass_through = found.string[max(0, found.start() - 1) : found.end() + 1]
        assert found[0] == "|" or pass_through[0] == "\\" or pass_through[-1] in "\u2060 ", pass_through


def test_the_verdicts_are_there() -> None:
    made = example.comparison()
    text = markdown.render(made, example.run())
    for pair in made["pairs"]:
        assert f"### {pair['other']} against {pair['reference']}: {pair['verdict']}\n" in text
        for key in ("sentence", "because", "settled_by"):
            assert not pair[key] or pair[key] in text
    assert "\n- GPU: NVIDIA H100 80GB HBM3 against NVIDIA B200\n" in text
    assert [line for line in text.split("\n") if line.startswith("## ")] == [
        "## Verdict", "## Speed", "## Time per step", "## Quality", "## Labels that differ",
        "## Skipped and failed arms", "## How it was measured",
    ]  # fmt: skip


@pytest.mark.parametrize("start", ["- item", "# head", "1. one", "+ plus", "=== under", "---"])
def test_a_sentence_is_neither_a_list_nor_a_heading(start: str) -> None:
    made = example.comparison()
    made["pairs"][0]["sentence"] = start
    line = next(line for line in markdown.render(made, {}).split("\n") if plain(line) == start)
    assert re.match(r"\\[-#+=]|1\\\.", line)


def test_what_is_missing_is_left_out() -> None:
    made: dict[str, Any] = example.comparison()
    for pair in made["pairs"]:
        pair |= {"shapes": [], "quality": None, "labels": []}
    text = markdown.render(made, {})
    assert text.count("Not measured.") == 3
    assert "None" not in text
    empty = markdown.render({"schema": 1, "reference": None, "arms": [], "pairs": []}, {})
    assert empty == "## Verdict\n\nNothing was compared.\n"
