"""The Markdown: its figures are the page's tiles, it is short, and data stays text."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from moe_eval.records.comparison import ComparisonRecord
from moe_eval.report import markdown, tiles
from tests.doubles import compared_arms
from tests.doubles.report_page import replaced


def table(text: str) -> list[list[str]]:
    """The one table, with GitHub's rules: a pipe after a backslash is text, and so is what a backslash escapes."""
    lines = text.split("\n")
    (at,) = [at for at, line in enumerate(lines) if re.fullmatch(r"\|(-+\|)+", line)]
    rows, end = [lines[at - 1]], at + 1
    while end < len(lines) and lines[end].startswith("|"):
        rows.append(lines[end])
        end += 1
    cells = [[plain(cell.strip()) for cell in re.findall(r"((?:\\.|[^|\\])*)\|", row[1:])] for row in rows]
    assert {len(row) for row in cells} == {lines[at].count("|") - 1}
    return cells


def plain(text: str) -> str:
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text).replace("\u2060", "")


@pytest.mark.parametrize(
    "change", ["", "a|b", "<b>x</b> `code` *bold* _it_ @someone #12 [l](http://x) \\| ~~s~~\n\n# h"]
)
def test_the_table_has_the_tiles_of_the_page(change: str) -> None:
    comparison = replaced(compared_arms.comparison(), lambda text: text + change)
    text = markdown.render(comparison, None)
    heads, *rows = table(text)
    pairs = [pair for pair in comparison.pairs if pair.headlines]
    assert len(heads) == 1 + len(pairs) == 3
    for column, pair in enumerate(pairs, 1):
        shown = {row[0]: row[column] for row in rows[1:] if row[column] != "-"}
        assert shown == {tile.title: tile.line for tile in tiles.of_pair(pair, comparison.rules)}
    assert rows[0][:2] == ["Speed at", tiles.place_of(pairs[0])]
    for match in re.finditer(r"[<`*@#|\[]", re.sub(r"(?m)^(#{2,4} |\|[-|]+\|$|\*\*)|\*\*$", "", text)):
        around = match.string[max(0, match.start() - 1) : match.end() + 1]
        assert match[0] == "|" or around[0] == "\\" or around[-1] in "\u2060 ", around


def test_the_header_and_the_verdicts_are_there_and_it_is_short() -> None:
    comparison = compared_arms.comparison()
    text = markdown.render(comparison, compared_arms.run())
    assert text.split("\n")[2] == plain(tiles.header_line(comparison.header))
    for pair in comparison.pairs:
        assert f"**{pair.other} against {pair.reference}: {pair.verdict.value}**\n" in text
        for sentence in (pair.sentence, pair.because, pair.settled_by or ""):
            assert sentence in text
    assert "\n- GPU: NVIDIA H100 80GB HBM3 against NVIDIA B200\n" in text
    assert "- mxfp4 failed (CUDA out of memory \\<at load\\>)." in text
    assert len(text.split("\n")) <= 60
    many = replace(comparison, pairs=(comparison.pairs[0],) * 9)
    assert len(markdown.render(many, None).split("\n")) <= 90


@pytest.mark.parametrize("start", ["- item", "# head", "1. one", "+ plus", "=== under", "---"])
def test_a_sentence_is_neither_a_list_nor_a_heading(start: str) -> None:
    comparison = compared_arms.comparison()
    pair = replace(comparison.pairs[0], sentence=start)
    text = markdown.render(replace(comparison, pairs=(pair,)), None)
    line = next(line for line in text.split("\n") if plain(line) == start)
    assert re.match(r"\\[-#+=]|1\\\.", line)


def test_what_is_missing_is_left_out() -> None:
    comparison = compared_arms.comparison()
    pairs = tuple(replace(pair, shapes=(), quality=None, labels=(), headlines=()) for pair in comparison.pairs)
    text = markdown.render(replace(comparison, pairs=pairs), None)
    assert "|" not in text
    assert "None" not in text
    empty = markdown.render(ComparisonRecord("", (), ()), None)
    assert empty == "## No arms\n\n- Nothing was compared. No arm has a result."


def test_an_arm_by_itself_has_its_figures_and_no_verdict() -> None:
    comparison = compared_arms.comparison()
    text = markdown.render(replace(comparison, arms=comparison.arms[:1], pairs=()), None)
    assert ["Output per GPU", "1,563 tok/s, 1,547 to 1,578"] in table(text)
    assert "One arm alone has no other to be compared with." in text
