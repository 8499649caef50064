"""Tables and sentences against rich, which lays them out by itself, and what must hold at any width."""

from __future__ import annotations

import io

import pytest
from rich.box import MARKDOWN, SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moe_eval.report.renderable import Grid, Group, Sentences, SideBySide

HEADS = ("arm", "interval and reference", "ms", "launches")
ROWS = [
    ("bf16", "1.00x (1.00 to 1.00), bf16 2,600 tok/s", "0.123", "45"),
    ("東京 fp8", "naïve — e\u0301 " + "kernel" * 9, "", "none"),
]


def by_rich(width: int | None) -> list[str]:
    is_file = width is None
    table = Table(box=MARKDOWN if is_file else SIMPLE_HEAD, pad_edge=is_file, collapse_padding=not is_file)
    for at, head in enumerate(HEADS):
        table.add_column(Text(head), justify="left" if at < 2 else "right", overflow="fold", no_wrap=at >= 2)
    for row in ROWS:
        table.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=width or 999, color_system=None)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().removesuffix("\n").split("\n")]


@pytest.mark.parametrize("width", [None, 200, 70, 60, 48])
def test_a_table_is_as_rich_lays_it_out(width: int | None) -> None:
    assert [line.rstrip() for line in Grid(HEADS, ROWS, 2).lines(width)] == by_rich(width)


@pytest.mark.parametrize("width", [20, 33, 60])
def test_sentences_are_folded_as_by_rich(width: int) -> None:
    texts = ["A prefill step takes 2.558 ms under the profiler.", "", "x" * 70 + " end", "東京" * 30]
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as captured:
        console.print(*map(Text, texts), sep="\n")
    expected = [line.rstrip() for line in captured.get().removesuffix("\n").split("\n")]
    assert Sentences(texts).lines(width) == expected
    assert Sentences(texts).lines(None) == texts


@pytest.mark.parametrize("width", range(1, 90))
def test_no_number_is_cut_and_no_letter_lost(width: int) -> None:
    lines = Grid(HEADS, ROWS, 2).lines(width)
    text = "".join(lines).replace(" ", "")
    assert all(number in text for *_, ms, launches in ROWS for number in (ms, launches))
    letters = sorted(letter for row in (HEADS, *ROWS) for cell in row for letter in cell if letter != " ")
    assert sorted(letter for letter in text if letter != "─") == letters
    if width >= 8 + 8 + 5 + 8 + 8:  # the least that texts take, the numbers, and the gaps
        assert max(map(cell_len, lines)) <= width


def test_a_first_cell_that_is_cut_stays_on_one_line() -> None:
    lines = Grid(("kernel", "ms"), [("k" * 50, "1.0"), ("short", "2.0")], 1, is_cut=True).lines(30)
    assert [line.split() for line in lines[3:5]] == [["k" * 22 + "…", "1.0"], ["short", "2.0"]]


def test_parts_stand_side_by_side_where_they_fit() -> None:
    parts = {"prefill": "1.0", "decode": "2.0"}
    beside = SideBySide(lambda some: Grid(("of", *some), [("a", *some.values())], 1), parts)
    heads = [line.split() for line in Group(Sentences(["x"]), beside).lines(24) if "of" in line]
    assert heads == [["of", "prefill", "decode"]]
    assert [line.split() for line in beside.lines(15) if "of" in line] == [["of", "prefill"], ["of", "decode"]]
    assert len(beside.lines(None)) == 5
